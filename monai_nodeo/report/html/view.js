"use strict";
(async () => {
  const get = (id) => document.getElementById(id);
  const stage = get("stage");
  const milliseconds = 600; // slower than three a second: safe for everyone
  const headerBytes = 352; // of NIfTI
  const layouts = { axial: 0, coronal: 1, sagittal: 2, all: 3, render: 4 };

  const unpack = async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };
  const image = (base64, colormap) => niivue.NVImage.loadFromBase64({
    base64, name: "volume.nii.gz", colormap, cal_min: 0, cal_max: 255, colorbarVisible: false,
  });

  try {
    const scene = JSON.parse(get("scene").textContent);
    const nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1], show3Dcrosshair: true, dragAndDropEnabled: false, isColorbar: false, logLevel: "error",
      crosshairColor: [1, 0.3, 0.2, 0.7], crosshairWidth: 0.5, crosshairWidthUnit: "percent",
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
    });
    await nv.attachToCanvas(get("canvas"));
    nv.setSliceType(layouts[scene.plane ?? "all"]);
    nv.addColormap("jacobian", scene.jacobian.colours);
    nv.addColormap("grid", { R: [255, 255], G: [220, 220], B: [0, 0], A: [0, 255], I: [0, 255] });

    // All volumes are on one grid: an image of NiiVue is made once, then only its voxels change.
    const base = await image(scene.fixed, "gray");
    const voxels = async (base64, like) => new like.img.constructor(await unpack(base64), headerBytes);
    const all = async (files, like) => Promise.all(files.map((file) => voxels(file, like)));
    const fixed = base.img.slice();
    const moved = await all(scene.moved, base);
    const overlays = { jacobian: { image: await image(scene.jacobian.volume, "jacobian") } };
    overlays.grid = { image: await image(scene.grid[0], "grid") };
    overlays.grid.frames = await all(scene.grid, overlays.grid.image);
    overlays.jacobian.frames = [overlays.jacobian.image.img];
    for (const overlay of Object.values(overlays)) overlay.everywhere = true; // in 3D it would hide the image
    for (const name of ["fixed", "moved"]) {
      if (!scene.labels?.[name]) continue;
      const map = await image(scene.labels[name][0], "gray");
      map.setColormapLabel(scene.labels.colours);
      overlays[`${name}-labels`] = { image: map, frames: await all(scene.labels[name], map) };
    }
    nv.addVolume(base);

    let timer = null;
    let lit = true; // the phase of the flicker
    let place = null;
    const time = () => Number(get("time").value);
    const opacity = () => (timer === null ? get("opacity").value / 100 : lit ? 1 : 0);
    const frame = (frames) => frames[Math.min(time(), frames.length - 1)];

    const draw = () => {
      const [share, target, there] = [opacity(), base.img, moved[time()]];
      for (let i = 0; i < target.length; i++) target[i] = fixed[i] + share * (there[i] - fixed[i]) + 0.5;
      const overlay = overlays[get("overlay").value];
      for (const volume of nv.volumes.slice(1)) if (volume !== overlay?.image) nv.removeVolume(volume);
      if (overlay) {
        overlay.image.img = frame(overlay.frames);
        overlay.image.opacity = get("overlay-opacity").value / 100;
        nv.opts.renderOverlayBlend = overlay.everywhere ? 0 : 1;
        if (nv.volumes.length === 1) nv.addVolume(overlay.image);
      }
      nv.updateGLVolume();
    };
    const tell = () => {
      get("opacity-shown").value = `${get("opacity").value} %`;
      get("time-shown").value = `${Math.round(100 * (1 - scene.times[time()]))} %`;
      get("overlay-opacity").disabled = get("overlay").value === "none";
      for (const legend of document.querySelectorAll("[data-legend]")) {
        legend.hidden = legend.dataset.legend !== get("overlay").value;
      }
      if (place === null) return;
      const index = scene.to_voxel.slice(0, scene.shape.length)
        .map((row) => Math.round(row[0] * place[0] + row[1] * place[1] + row[2] * place[2] + row[3]));
      if (index.some((i, axis) => i < 0 || i >= scene.shape[axis])) return;
      const at = index.reduceRight((sum, i, axis) => sum * scene.shape[axis] + i, 0);
      const grey = (code, [low, high]) => (low + (code / 255) * (high - low)).toPrecision(4);
      const [smallest, largest] = scene.jacobian.limits;
      const code = overlays.jacobian.image.img[at];
      const determinant = code === 0 ? "folded" : (smallest * (largest / smallest) ** ((code - 1) / 254)).toFixed(2);
      const words = [
        `${place.slice(0, 3).map((x) => x.toFixed(1)).join(", ")} mm`,
        `fixed ${grey(fixed[at], scene.windows.fixed)}`,
        `moving ${grey(moved[time()][at], scene.windows.moved)}`,
        `Jacobian ${determinant}`,
      ];
      for (const name of ["fixed", "moved"]) {
        const map = overlays[`${name}-labels`];
        if (map) words.push(`${name === "moved" ? "moving" : name} label ${scene.labels.values[frame(map.frames)[at]]}`);
      }
      get("place").value = words.join(" · ");
    };
    const update = () => {
      if (stage.getAttribute("aria-busy") === "true") return;
      stage.setAttribute("aria-busy", "true");
      requestAnimationFrame(() => {
        draw();
        tell();
        stage.setAttribute("aria-busy", "false");
      });
    };
    const setFlicker = (on) => {
      clearInterval(timer);
      lit = true;
      timer = on ? setInterval(() => { lit = !lit; update(); }, milliseconds) : null;
      get("flicker").setAttribute("aria-pressed", on);
      update();
    };

    get("controls").addEventListener("input", (event) => {
      if (event.target.id === "layout") nv.setSliceType(layouts[event.target.value]);
      else if (event.target.id === "opacity") setFlicker(false);
      else update();
    });
    get("flicker").addEventListener("click", () => setFlicker(timer === null));
    document.addEventListener("keydown", (event) => {
      if (event.key === "f" && !event.ctrlKey && !event.metaKey && !event.altKey) setFlicker(timer === null);
    });
    nv.onLocationChange = (location) => {
      place = [...location.mm];
      tell();
    };
    stage.setAttribute("aria-busy", "false");
    update();
    nv.createOnLocationChange();
  } catch (error) {
    get("place").value = `The images cannot be shown: ${error.message}`;
    stage.setAttribute("aria-busy", "false");
    throw error;
  }
})();
