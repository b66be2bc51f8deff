"""Files that lie elsewhere: object stores and web servers, and what of them is on this machine."""
