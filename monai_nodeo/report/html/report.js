"use strict";
{
  // Of each view: the layer below, the one above that slider and flicker change, and the opacity it starts with.
  const views = {
    blend: { below: () => "fixed", above: (image) => [image], opacity: 50 },
    checkerboard: { below: () => "fixed", above: (image) => [image], opacity: 100 },
    edges: { below: (image) => image, above: () => ["edges"], opacity: 100 },
    difference: { below: () => "fixed", above: (image, side) => [`difference-${side}`], opacity: 100 },
    grid: { below: () => "fixed", above: () => ["grid"], opacity: 100, oneSided: true },
    jacobian: { below: () => "fixed", above: () => ["jacobian"], opacity: 100, oneSided: true },
    displacement: { below: () => "fixed", above: () => ["displacement"], opacity: 100, oneSided: true },
    uncertainty: { below: () => "fixed", above: () => ["uncertainty"], opacity: 100, oneSided: true },
    labels: { below: (image) => image, above: (image) => ["contours-fixed", `contours-${image}`], opacity: 100 },
  };
  const viewer = document.getElementById("viewer");
  const slider = document.getElementById("opacity");
  const shown = document.getElementById("opacity-shown");
  const flicker = document.getElementById("flicker");
  const sides = document.getElementById("sides");
  const chosen = (name) => viewer.querySelector(`input[name="${name}"]:checked`).value;
  const layers = [...viewer.querySelectorAll("img[data-layer]")];
  const milliseconds = 600; // slower than three a second: safe for everyone
  let timer = null;
  let lit = true; // the phase of the flicker

  const draw = () => {
    const name = chosen("view");
    const view = views[name];
    const side = chosen("side");
    const image = side === "before" ? "moving" : "warped";
    const below = view.below(image, side);
    const above = view.above(image, side);
    const opacity = timer === null ? slider.value / 100 : lit ? 1 : 0;
    for (const layer of layers) {
      const isAbove = above.includes(layer.dataset.layer);
      layer.hidden = !isAbove && layer.dataset.layer !== below;
      layer.style.opacity = isAbove ? opacity : 1;
      layer.style.zIndex = isAbove ? 1 : 0;
      layer.classList.toggle("checkered", isAbove && name === "checkerboard");
      layer.classList.toggle("paper", isAbove && ["grid", "jacobian"].includes(name));
    }
    sides.disabled = Boolean(view.oneSided);
    shown.value = `${slider.value} %`;
    for (const legend of viewer.querySelectorAll("[data-legend]")) legend.hidden = legend.dataset.legend !== name;
    for (const word of viewer.querySelectorAll("[data-word]")) word.hidden = word.dataset.word !== side;
  };
  const setFlicker = (on) => {
    clearInterval(timer);
    lit = true;
    timer = on ? setInterval(() => { lit = !lit; draw(); }, milliseconds) : null;
    flicker.setAttribute("aria-pressed", on);
    draw();
  };
  viewer.addEventListener("change", (event) => {
    if (event.target.name === "view") slider.value = views[chosen("view")].opacity;
    draw();
  });
  slider.addEventListener("input", () => setFlicker(false));
  flicker.addEventListener("click", () => setFlicker(timer === null));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const options = [...viewer.querySelectorAll('input[name="view"]')];
    if (event.key === "f") setFlicker(timer === null);
    else if (event.key === "b") viewer.querySelector('input[name="side"]:not(:checked)').click();
    else if (options[Number(event.key) - 1]) options[Number(event.key) - 1].click();
  });
  slider.value = views[chosen("view")].opacity;
  draw();
}
