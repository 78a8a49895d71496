"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// tables: a click on a heading sorts by it (figures from the largest, words from a), a second one turns the order
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const before = heading.getAttribute("aria-sort");
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    const figures = rows.every((row) => !isNaN(key(row)));
    const descending = before ? before === "ascending" : figures;
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what has no value goes last
      const order = figures ? x - y : x.localeCompare(y, undefined, {numeric: true});
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });
}

// one image as a card: a thumbnail that opens the viewer
function card(index, fact) {
  const image = data.images[index];
  const button = element("button", "", "card");
  button.type = "button";
  const thumb = data.thumbs[image.thumb];
  if (thumb) {
    const picture = document.createElement("img");
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.alt = "";
    picture.style.aspectRatio = image.ratio;  // its place, before it is decoded
    picture.src = thumb;
    button.append(picture);
  }
  button.append(element("b", fact), document.createTextNode(" " + image.name));
  button.addEventListener("click", () => view(index));
  return button;
}

// confusion matrix: a cell lists the images that contribute most
for (const cell of document.querySelectorAll(".cell")) {
  cell.addEventListener("click", () => {
    const [label, prediction] = cell.dataset.cell.split(",").map(Number);
    const box = $("opened");
    const [a, b] = [data.classes[label], data.classes[prediction]];
    const what = label === prediction ? `${a}: found` : `labelled ${a}, predicted ${b}`;
    const entries = data.cells[cell.dataset.cell] || [];
    box.replaceChildren(element("h3", `${what}: ${cell.dataset.share} of the pixels of ${a}`));
    const cards = element("div", "", "gallery");
    cards.append(...entries.map(([image, pixels]) => card(image, `${pixels.toLocaleString()} pixels`)));
    box.append(entries.length ? cards : element("p", "in no image"));
  });
}

// one stop of the tab key for the whole matrix, in which the arrow keys move
const steps = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
const matrix = $("matrix");
if (matrix) {
  matrix.querySelectorAll("button.cell").forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
  matrix.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const place = event.target.closest("td");
    if (!step || !place) return;
    event.preventDefault();
    const row = matrix.rows[place.parentElement.rowIndex + step[0]];
    const next = row && row.cells[place.cellIndex + step[1]];
    const cell = next && next.querySelector("button.cell");
    if (cell) cell.focus();
  });
  matrix.addEventListener("focusin", (event) => {
    for (const cell of matrix.querySelectorAll("button.cell[tabindex='0']")) cell.tabIndex = -1;
    event.target.tabIndex = 0;
  });
}

// gallery: groups of images; with a class chosen, those where it is found worst
const choice = $("filter");
function fill() {
  const box = $("gallery");
  box.replaceChildren();
  const add = (title, entries) => {
    if (!entries.length) return;
    const cards = element("div", "", "gallery");
    cards.append(...entries);
    box.append(element("h3", title), cards);
  };
  if (!choice || choice.value === "") {
    for (const [title, indices] of data.gallery) add(title, indices.map((i) => card(i, data.images[i].fact)));
    return;
  }
  const name = data.classes[choice.value];
  const holding = data.images.map((image, i) => [i, image.per[choice.value]]);
  const found = holding.filter(([, iou]) => iou !== undefined).sort((x, y) => x[1] - y[1]);
  add(`${name}: worst of ${found.length}`, found.slice(0, 12).map(([i, iou]) => card(i, iou.toFixed(3))));
  if (!found.length) box.append(element("p", `${name} is in no label and no prediction`));
}
if (choice) choice.addEventListener("change", fill);
if ($("gallery")) fill();

// viewer: two layers of one image, and a slider between them
const layers = data.layers || [];
function view(index) {
  const image = data.images[index];
  const full = data.full[image.full];
  $("viewer-name").textContent = image.name;
  $("viewer-facts").textContent = image.facts;
  $("viewer-controls").hidden = !full;
  const thumb = data.thumbs[image.thumb];
  const what = thumb ? "Only a small picture" : "No picture";
  $("viewer-note").textContent = full ? "" : `${what} of this image is in the report.`;
  $("stage").hidden = !full && !thumb;
  $("under").src = full ? full[0] : thumb || "";
  $("viewer").dataset.image = index;
  $("viewer").style.setProperty("--ratio", image.ratio);
  $("viewer-classes").replaceChildren(...Object.entries(full ? image.per : {}).map(([i, iou]) => {
    const swatch = element("span", "", "swatch");
    swatch.style.background = `rgb(${data.colors[i]})`;
    const entry = element("li");
    entry.append(swatch, `${data.classes[i]} ${typeof iou === "number" ? iou.toFixed(3) : iou}`);
    return entry;
  }));
  draw();
  $("viewer").showModal();
}
function draw() {
  const image = data.images[$("viewer").dataset.image];
  const full = data.full[image.full];
  $("over").hidden = !full;
  if (!full) return;
  $("under").src = full[$("left").value];
  $("over").src = full[$("right").value];
  $("over").style.clipPath = `inset(0 0 0 ${$("split").value}%)`;
}
if ($("viewer")) {
  $("legend").hidden = !layers.includes("errors");
  for (const [id, start] of [["left", data.start[0]], ["right", data.start[1]]]) {
    layers.forEach((layer, i) => $(id).add(new Option(layer, i, i === start, i === start)));
    $(id).addEventListener("change", draw);
  }
  $("split").addEventListener("input", draw);
  $("close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => {  // beside it
    if (event.target === $("viewer")) $("viewer").close();
  });
}
