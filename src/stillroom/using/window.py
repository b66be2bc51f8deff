"""A window that shows pictures while they are made."""

from typing import Any

from PIL import Image

from stillroom.errors import UserError, first_line
from stillroom.pictures.draw import Rgb


class Window:
    """One picture at a time; UserError where there is no display."""

    def __init__(self, title: str) -> None:
        try:
            import tkinter

            self._window: Any = tkinter.Tk()
        except Exception as error:  # no tkinter, or its TclError, which is an Exception alone
            raise UserError("no window can be opened", found=first_line(error)) from None
        self._window.title(title)
        self._label: Any = tkinter.Label(self._window)
        self._label.pack()
        self.is_open = True
        self._window.protocol("WM_DELETE_WINDOW", self._close)

    def show(self, picture: Rgb) -> None:
        """Show a picture, while the window is open."""
        from PIL import ImageTk

        if self.is_open:
            self._picture = ImageTk.PhotoImage(Image.fromarray(picture), master=self._window)
            self._label.configure(image=self._picture)
            self._window.update()

    def _close(self) -> None:
        self.is_open = False
        self._window.destroy()
