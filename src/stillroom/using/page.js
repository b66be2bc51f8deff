"use strict";
(() => {
  const store = document.getElementById("layers");
  if (!store) return;
  const layers = JSON.parse(store.textContent);
  const find = (name) => document.getElementById(name);
  const thumbs = [...document.querySelectorAll(".strip button")];
  const [base, left, right] = ["base", "left-layer", "right-layer"].map(find);
  let current = 0;

  function draw() {
    const thumb = thumbs[current], split = Number(find("split").value);
    const image = thumb.querySelector("img");
    base.src = image.src;
    base.alt = image.alt;
    for (const [layer, side] of [[left, "left"], [right, "right"]]) {
      const name = find(side).value, source = layers[current][name];
      find(`${side}-name`).textContent = name;
      layer.hidden = !source;
      if (source) layer.src = source;
      layer.alt = name;
      layer.style.opacity = find("strength").value / 100;
    }
    left.style.clipPath = `inset(0 ${100 - split}% 0 0)`;
    right.style.clipPath = `inset(0 0 0 ${split}%)`;
    find("edge").style.left = `${split}%`;
    find("shown").textContent = `${current + 1} of ${thumbs.length}: ${thumb.title}`;
    thumbs.forEach((other, i) => other.setAttribute("aria-pressed", i === current));
  }

  function go(number) {
    current = (number + thumbs.length) % thumbs.length;
    draw();
  }

  for (const name of ["split", "strength", "left", "right"]) find(name).addEventListener("input", draw);
  find("before").addEventListener("click", () => go(current - 1));
  find("after").addEventListener("click", () => go(current + 1));
  thumbs.forEach((thumb, i) => thumb.addEventListener("click", () => {
    go(i);
    find("viewer").scrollIntoView({ block: "nearest" });
  }));
  const stage = find("stage");
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    find("split").value = (100 * (event.clientX - box.left)) / box.width;
    draw();
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); follow(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  find("viewer").hidden = false;
  draw();
})();
