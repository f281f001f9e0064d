// The slice viewer, and the buttons that save figures. Pictures hold codes; a table in the page's
// data turns a code into HU, and window and difference are computed here. Nothing is fetched.
"use strict";

const DIFFERENCE = 200; // HU at both ends of the difference scale

const byId = (id) => document.getElementById(id);

// Blue: too dark, black: right, orange: too bright. Told apart with any colour vision.
// RGBA of each whole HU from -DIFFERENCE to +DIFFERENCE.
const COLOURS = new Uint8ClampedArray(4 * (2 * DIFFERENCE + 1));
for (let hu = -DIFFERENCE; hu <= DIFFERENCE; hu++) {
  const strength = Math.abs(hu) / DIFFERENCE;
  const [r, g, b] = hu < 0 ? [70, 170, 255] : [255, 150, 30];
  COLOURS.set([r * strength, g * strength, b * strength, 255], 4 * (hu + DIFFERENCE));
}

function viewer(data) {
  const [patient, slice, tiles] = [byId("patient"), byId("slice"), byId("tiles")];
  const hu = Float32Array.from(data.hu);
  const cells = new Map(); // method -> its canvases, readout and, once decoded, its codes
  let shown = 0; // number of the last request, so that a late picture cannot overtake it

  for (const [name, title] of data.methods) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const readout = document.createElement("output");
    caption.append(title, readout);
    figure.append(caption);
    const canvases = [];
    for (const kind of name === "true" ? ["scan"] : ["scan", "difference"]) {
      const picture = document.createElement("div");
      picture.className = "picture";
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute(
        "aria-label", kind === "scan" ? title : `${title} minus true contrast CT`);
      picture.append(canvas);
      figure.append(picture);
      canvases.push(canvas);
    }
    if (name === "true") figure.append(scale());
    tiles.append(figure);
    cells.set(name, { title, canvases, readout, codes: null });
  }

  function scale() {
    const box = document.createElement("div");
    box.className = "scale";
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [COLOURS.length / 4, 1];
    canvas.getContext("2d").putImageData(new ImageData(COLOURS, canvas.width, 1), 0, 0);
    const ends = document.createElement("div");
    for (const text of [`−${DIFFERENCE}`, "0", `+${DIFFERENCE} HU`]) {
      const end = document.createElement("span");
      end.textContent = text;
      ends.append(end);
    }
    const words = document.createElement("div");
    for (const text of ["too dark", "too bright"]) {
      const word = document.createElement("span");
      word.textContent = text;
      words.append(word);
    }
    box.append(words, canvas, ends);
    return box;
  }

  // All that the viewer shows now, in one row: what a paper's figure would be.
  function together() {
    const [gap, head] = [8, 44];
    const shown = [...cells.values()].filter(({ codes }) => codes);
    const wide = shown[0].codes.width;
    const high = Math.round(wide / Number.parseFloat(shown[0].canvases[0].style.aspectRatio));
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [shown.length * (wide + gap) - gap, head + 2 * high + gap + 24];
    const context = sheet.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, sheet.width, sheet.height);
    context.fillStyle = "#000000";
    context.font = "13px sans-serif";
    context.fillText(byId("shown").textContent, 0, 16);
    shown.forEach(({ canvases, title }, i) => {
      context.fillText(title, i * (wide + gap), head - 6, wide);
      canvases.forEach((canvas, kind) => context.drawImage(
        canvas, i * (wide + gap), head + kind * (high + gap), wide, high));
    });
    context.fillText("DyeFreeNet. For research only; not for diagnosis.", 0, sheet.height - 6);
    return sheet;
  }

  const entry = () => data.patients[patient.selectedIndex];

  function decode(png) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.width, image.height];
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const rgba = context.getImageData(0, 0, image.width, image.height).data;
        const values = new Float32Array(image.width * image.height);
        for (let i = 0; i < values.length; i++) values[i] = hu[rgba[4 * i]];
        resolve({ values, width: image.width, height: image.height });
      };
      image.onerror = reject;
      image.src = `data:image/png;base64,${png}`;
    });
  }

  async function load() {
    const request = ++shown;
    const chosen = entry().slices[slice.valueAsNumber];
    byId("slice-number").textContent =
      `${chosen.index} (${slice.valueAsNumber + 1} of ${entry().slices.length})`;
    slice.setAttribute("aria-valuetext", `slice ${chosen.index}`);
    const names = [...cells.keys()];
    const decoded = await Promise.all(
      names.map((name) => (chosen.images[name] ? decode(chosen.images[name]) : null)));
    if (request !== shown) return;
    names.forEach((name, i) => { cells.get(name).codes = decoded[i]; });
    draw();
  }

  // Draws one canvas: codes in the chosen window, or their difference to the truth in colours.
  function paint(canvas, codes, truth, spacing) {
    const [level, width] = document.querySelector("input[name=window]:checked")
      .value.split(",").map(Number);
    const low = level - width / 2;
    const [, rows, columns] = spacing;
    [canvas.width, canvas.height] = [codes.width, codes.height];
    canvas.style.aspectRatio = (codes.width * columns) / (codes.height * rows);
    const context = canvas.getContext("2d");
    const image = context.createImageData(codes.width, codes.height);
    const pixels = image.data; // clamps to 0...255 by itself
    for (let i = 0, at = 0; i < codes.values.length; i++, at += 4) {
      if (!truth) {
        pixels[at] = pixels[at + 1] = pixels[at + 2] = ((codes.values[i] - low) / width) * 255;
      } else {
        const error = Math.round(codes.values[i] - truth.values[i]);
        const place = 4 * (Math.max(-DIFFERENCE, Math.min(DIFFERENCE, error)) + DIFFERENCE);
        for (let c = 0; c < 3; c++) pixels[at + c] = COLOURS[place + c];
      }
      pixels[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  // For print and saved pictures, which have no controls to read it from.
  function describe() {
    const label = document.querySelector("input[name=window]:checked").parentElement.textContent;
    byId("shown").textContent = `Patient ${entry().patient}, slice `
      + `${byId("slice-number").textContent}; ${label.trim().replace(/\s+/g, " ")}; below: minus `
      + `true, blue −${DIFFERENCE} HU, black 0, orange +${DIFFERENCE} HU`;
  }

  function draw() {
    describe();
    const truth = cells.get("true").codes;
    for (const { canvases, codes } of cells.values()) {
      canvases.forEach((canvas, kind) => {
        if (codes) paint(canvas, codes, kind ? truth : null, entry().spacing);
        else canvas.width = canvas.width; // this patient lacks the method
      });
    }
  }

  // The worst cases: the true scan, the prediction, and its difference.
  function drawCases() {
    const chosen = byId("case-method")?.value;
    for (const row of document.querySelectorAll(".case-row")) {
      row.hidden = row.dataset.method !== chosen;
      if (!row.hidden) for (const figure of row.children) drawCase(figure);
    }
  }

  async function drawCase(figure) {
    const { pair, picture } = figure.dataset;
    const panel = data.patients.find((one) => one.pair === pair);
    const { images } = panel.slices[placeOf(panel, picture)];
    const [truth, codes] = await Promise.all([decode(images.true), decode(images[picture])]);
    const trio = [["True", truth, null], ["Predicted", codes, null], ["Difference", codes, truth]];
    figure.querySelector(".trio").replaceChildren(...trio.map(([title, values, other]) => {
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${title}, patient ${panel.patient}`);
      paint(canvas, values, other, panel.spacing);
      return canvas;
    }));
  }

  const placeOf = (panel, picture) => panel.worst[picture] ?? Math.floor(panel.slices.length / 2);

  function openCase({ pair, picture }) {
    patient.selectedIndex = data.patients.findIndex((one) => one.pair === pair);
    choosePatient(placeOf(entry(), picture));
    byId("pictures").scrollIntoView();
    tiles.focus({ preventScroll: true });
  }

  function point(event) {
    const canvas = event.target.closest(".picture")?.firstElementChild;
    const place = canvas?.getBoundingClientRect();
    const x = place ? (event.clientX - place.left) / place.width : -1;
    const y = place ? (event.clientY - place.top) / place.height : -1;
    const inside = x >= 0 && x < 1 && y >= 0 && y < 1;
    tiles.style.setProperty("--x", inside ? `${100 * x}%` : "-50px");
    tiles.style.setProperty("--y", inside ? `${100 * y}%` : "-50px");
    for (const { readout, codes } of cells.values()) {
      readout.textContent = inside && codes
        ? `${Math.round(codes.values[Math.floor(y * codes.height) * codes.width
          + Math.floor(x * codes.width)])} HU`
        : "";
    }
  }

  function choosePatient(place = Math.floor(entry().slices.length / 2)) {
    slice.max = entry().slices.length - 1;
    slice.value = place;
    load();
  }

  const windows = [...document.querySelectorAll("input[name=window]")];
  const actions = {
    ArrowLeft: () => moveSlice(-1), ArrowRight: () => moveSlice(1),
    ArrowUp: () => movePatient(-1), ArrowDown: () => movePatient(1),
    "[": () => movePatient(-1), "]": () => movePatient(1),
    1: () => windows[0].click(), 2: () => windows[1].click(), 3: () => windows[2].click(),
  };

  function moveSlice(by) {
    const before = slice.value;
    slice.value = slice.valueAsNumber + by; // the range holds it within its ends
    if (slice.value !== before) load();
  }

  function movePatient(by) {
    const place = patient.selectedIndex + by;
    if (!data.patients[place]) return;
    patient.selectedIndex = place;
    choosePatient();
  }

  // Only within this section, so that a page that is read by keyboard still scrolls. A list keeps
  // all its keys, and slider and choices keep their arrows.
  function press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.matches("select")) return;
    if (event.target.matches("input") && event.key.startsWith("Arrow")) return;
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }

  const scans = new Map(); // of each patient, how many the list has so far
  for (const { patient: name } of data.patients) {
    const scan = (scans.get(name) ?? 0) + 1;
    scans.set(name, scan);
    const option = document.createElement("option");
    option.textContent = (name.length > 16 ? `${name.slice(0, 16)}…` : name)
      + (scan > 1 ? `, scan ${scan}` : "");
    patient.append(option);
  }
  patient.addEventListener("change", () => choosePatient());
  slice.addEventListener("input", load);
  byId("pictures").addEventListener("keydown", press);
  for (const choice of windows) {
    choice.addEventListener("change", () => { draw(); drawCases(); });
  }
  for (const button of document.querySelectorAll("button.open")) {
    button.addEventListener("click", () => openCase(button.dataset));
  }
  const method = byId("case-method");
  if (method) {
    method.form.hidden = false;
    method.addEventListener("change", drawCases);
  }
  byId("larger").addEventListener("click", (event) => {
    const large = tiles.classList.toggle("large");
    event.target.setAttribute("aria-pressed", large);
  });
  byId("viewer-controls").addEventListener("submit", (event) => event.preventDefault());
  tiles.addEventListener("pointermove", point);
  tiles.addEventListener("pointerdown", point);
  tiles.addEventListener("pointerleave", point);
  choosePatient();
  drawCases();
  return together;
}

// What an SVG file must say itself, for it has no style sheet.
const STYLES = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width",
  "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "font-family", "font-size",
  "font-weight", "text-anchor"];

// A figure as a file of its own: its title above, its legend below, in the light colours.
function standalone(figure) {
  const drawn = figure.querySelector("svg");
  const copy = drawn.cloneNode(true);
  const [, , width, height] = drawn.getAttribute("viewBox").split(" ").map(Number);
  const add = (name, attributes, text = "") => {
    const node = document.createElementNS(drawn.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    copy.append(node);
    return node;
  };
  document.documentElement.classList.add("light");
  const font = { "font-family": getComputedStyle(document.body).fontFamily, fill: "#1b2430" };
  const copies = copy.querySelectorAll("*");
  drawn.querySelectorAll("*").forEach((node, i) => {
    const style = getComputedStyle(node);
    for (const name of STYLES) copies[i].setAttribute(name, style.getPropertyValue(name));
    copies[i].removeAttribute("class");
  });
  const legend = [...figure.querySelectorAll(".legend li")].map(
    (item) => [item.textContent, getComputedStyle(item, "::before").backgroundColor]);
  document.documentElement.classList.remove("light");

  const box = { x: -8, y: -44, width: width + 16, height: height + 56 + 18 * legend.length };
  copy.prepend(add("rect", { ...box, fill: "#ffffff" }));
  const caption = figure.querySelector("figcaption");
  const [title, note] = [caption.firstChild.textContent, caption.querySelector("small").textContent];
  add("text", { ...font, x: 0, y: -26, "font-size": 14, "font-weight": 600 }, title.trim());
  add("text", { ...font, x: 0, y: -10, "font-size": 11 }, note);
  legend.forEach(([text, colour], i) => {
    const y = height + 18 * (i + 1);
    add("rect", { x: 0, y: y - 6, width: 14, height: 3, fill: colour });
    add("text", { ...font, x: 20, y, "font-size": 12 }, text);
  });
  copy.setAttribute("viewBox", `${box.x} ${box.y} ${box.width} ${box.height}`);
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  return new XMLSerializer().serializeToString(copy);
}

// The SVG's pixels, three to each of its units.
async function rasterised(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [3 * image.width, 3 * image.height];
  sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
  return sheet;
}

const pngOf = (sheet) => new Promise((resolve) => { sheet.toBlob(resolve, "image/png"); });

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${document.body.dataset.run}-${name}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function take(button) {
  const name = button.dataset.take;
  const figure = button.closest("figure");
  const text = JSON.parse(byId("files").textContent)[name];
  if (text !== undefined) {
    save(new Blob([text], { type: name.endsWith(".csv") ? "text/csv" : "text/markdown" }), name);
  } else if (name.endsWith(".svg")) {
    save(new Blob([standalone(figure)], { type: "image/svg+xml" }), name);
  } else {
    save(await pngOf(figure ? await rasterised(standalone(figure)) : pictures()), name);
  }
}

let unfolded = []; // for printing
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const part of unfolded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of unfolded) part.open = false;
});

for (const buttons of document.querySelectorAll(".take")) {
  buttons.hidden = false;
  buttons.addEventListener("click", (event) => {
    if (event.target.dataset.take) take(event.target);
  });
}

const stored = byId("viewer-data");
const pictures = stored && viewer(JSON.parse(stored.textContent));
