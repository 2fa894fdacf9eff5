"use strict";

const byId = (id) => document.getElementById(id);
const images = new Map();          // input -> {id, width, height}
const panels = [];

function say(text, isError = false) {
  byId("message").textContent = text;
  byId("message").className = isError ? "error" : "";
}

async function ask(address, options) {
  const answer = await fetch(address, options);
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({ error: answer.statusText }));
    throw new Error(told.error);
  }
  return answer;
}

function cells(row, ...contents) {
  for (const content of contents) {
    const cell = row.insertCell();
    if (content instanceof Node) cell.append(content);
    else cell.textContent = content;
  }
}

function mark(className, style) {
  const found = document.createElement("span");
  found.className = className;
  Object.assign(found.style, style);
  return found;
}

class Panel {
  constructor(number, net) {
    const part = byId("net").content.cloneNode(true);
    this.root = part.querySelector("section");
    for (const name of ["scores", "picture", "image", "colours", "field", "cross", "legend", "pixel", "blobs", "grid", "about"]) {
      this[name] = this.root.querySelector("." + name);
    }
    Object.assign(this, { number, net, results: [], place: null, asked: 0, waiting: null });
    this.root.querySelector("h2").textContent = net.title;
    for (const blob of net.blobs) this.blobs.add(new Option(blob, blob));
    this.blobs.selectedIndex = -1;
    this.blobs.onchange = () => this.showBlob();
    this.scores.onchange = () => this.showResult();
    this.picture.onmousemove = (event) => this.move(...this.pixelAt(event));
    this.picture.onclick = (event) => { this.picture.focus(); this.move(...this.pixelAt(event)); this.showField(); };
    this.picture.onkeydown = (event) => this.key(event);
    byId("nets").append(part);
  }

  get ready() { return this.net.inputs.every((name) => images.has(name)); }
  get result() { return this.results[Math.max(0, this.scores.selectedIndex)]; }

  address(what, more = {}) {
    const query = new URLSearchParams(more);
    for (const name of this.net.inputs) query.set("image." + name, images.get(name).id);
    return `api/nets/${this.number}/${what}?${query}`;
  }

  async run() {
    if (!this.ready) return;
    this.image.src = "api/images/" + images.get(this.net.inputs[0]).id;
    this.results = await (await ask(this.address("segmentation"))).json();
    this.scores.replaceChildren(...this.results.map((one) => new Option(one.blob, one.blob)));
    this.root.querySelector(".which").hidden = this.results.length < 2;
    this.showResult();
    if (this.blobs.value) await this.showBlob();
  }

  showResult() {
    this.place = null;
    this.field.style.display = this.cross.style.display = "none";
    this.pixel.querySelector("tbody").replaceChildren();
    this.pixel.querySelector(".place").textContent = "";
    this.colours.src = this.address("overlay", { blob: this.result.blob });
    const body = this.legend.tBodies[0];
    body.replaceChildren();
    for (const entry of this.result.legend) {
      cells(body.insertRow(), mark("swatch", { background: `rgb(${entry.colour})` }), entry.name, entry.share.toFixed(3));
    }
  }

  pixelAt(event) {
    const area = this.picture.getBoundingClientRect();
    const { width, height } = this.result ?? { width: 1, height: 1 };
    const x = Math.floor((event.clientX - area.left) / area.width * width);
    const y = Math.floor((event.clientY - area.top) / area.height * height);
    return [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  }

  async move(x, y) {
    if (!this.result || (this.place && this.place.x === x && this.place.y === y)) return;
    this.place = { x, y };
    this.waiting = { x, y };
    if (this.asked) return;            // one question at a time: the last place that was waited for is asked next
    while (this.waiting) {
      const wanted = this.waiting;
      this.waiting = null;
      this.asked += 1;
      try {
        const told = await (await ask(this.address("pixel", { ...wanted, blob: this.result.blob }))).json();
        this.told = told;
        this.showPixel(told);
      } catch (error) {
        say(error.message, true);
      }
      this.asked -= 1;
    }
  }

  showPixel(told) {
    const { width, height } = this.result;
    this.cross.style.display = "block";
    this.cross.style.left = (told.x + 0.5) / width * 100 + "%";
    this.cross.style.top = (told.y + 0.5) / height * 100 + "%";
    this.pixel.querySelector(".place").textContent = `column ${told.x}, row ${told.y}`;
    const body = this.pixel.querySelector("tbody");
    body.replaceChildren();
    for (const entry of told.probabilities.slice(0, 5)) {
      cells(body.insertRow(), entry.name, entry.value.toFixed(4), mark("bar", { width: entry.value * 8 + "em" }));
    }
  }

  async showField() {
    while (this.asked) await new Promise((done) => setTimeout(done, 10));
    if (!this.told) return;
    const { width, height } = this.result, box = this.told.field;
    this.field.style.display = box ? "block" : "none";
    if (!box) return;
    const [left, top, right, bottom] = box;
    Object.assign(this.field.style, {
      left: left / width * 100 + "%", top: top / height * 100 + "%",
      width: (right - left) / width * 100 + "%", height: (bottom - top) / height * 100 + "%",
    });
    say(`the score at column ${this.told.x}, row ${this.told.y} depends on columns ${left} to ${right - 1} and rows ${top} to ${bottom - 1}`);
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.result) return;
    const { width, height } = this.result, far = event.shiftKey ? 10 : 1;
    const { x, y } = this.place ?? { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    if (event.key in steps) {
      const [right, down] = steps[event.key];
      this.move(Math.min(Math.max(x + right * far, 0), width - 1), Math.min(Math.max(y + down * far, 0), height - 1));
    } else if (event.key === "Enter") {
      this.move(x, y);
      this.showField();
    } else if (event.key === "Escape") {
      this.field.style.display = "none";
      say("");
    } else {
      return;
    }
    event.preventDefault();
  }

  async showBlob() {
    if (!this.ready) return;
    try {
      const answer = await ask(this.address("blob", { blob: this.blobs.value }));
      const pictured = answer.headers.get("Content-Type").startsWith("image/");
      const about = pictured ? JSON.parse(decodeURIComponent(answer.headers.get("X-About"))) : await answer.json();
      if (this.grid.src) URL.revokeObjectURL(this.grid.src);
      this.grid.hidden = !pictured;
      if (pictured) this.grid.src = URL.createObjectURL(await answer.blob());
      const range = "least" in about
        ? `, from ${about.least.toPrecision(4)} to ${about.largest.toPrecision(4)}, mean ${about.mean.toPrecision(4)}` : "";
      const values = about.values ? ": " + about.values.map((value) => value.toPrecision(4)).join(" ") : "";
      this.about.textContent = `${about.name}: ${about.shape.join(" x ")}${range}${values}`;
    } catch (error) {
      say(error.message, true);
    }
  }
}

async function take(input, file) {
  say(`${file.name} …`);
  try {
    images.set(input, await (await ask("api/images", { method: "POST", body: file })).json());
    for (const panel of panels) await panel.run();
    const missing = [...new Set(panels.flatMap((panel) => panel.net.inputs))].filter((name) => !images.has(name));
    say(missing.length ? `an image for ${missing.join(", ")} is missing` : file.name);
  } catch (error) {
    say(error.message, true);
  }
}

function slot(input) {
  const found = document.createElement("label");
  const chooser = document.createElement("input");
  found.className = "slot";
  chooser.type = "file";
  chooser.accept = "image/*";
  chooser.onchange = () => chooser.files[0] && take(input, chooser.files[0]);
  found.append(`drop an image here, or click (${input})`, chooser);
  found.ondragover = (event) => { event.preventDefault(); found.classList.add("over"); };
  found.ondragleave = () => found.classList.remove("over");
  found.ondrop = (event) => {
    event.preventDefault();
    event.stopPropagation();
    found.classList.remove("over");
    if (event.dataTransfer.files[0]) take(input, event.dataTransfer.files[0]);
  };
  return found;
}

function opacity() {
  for (const panel of panels) panel.colours.style.opacity = byId("opacity").value / 100;
}

async function start() {
  const told = await (await ask("api/nets")).json();
  told.nets.forEach((net, number) => panels.push(new Panel(number, net)));
  const inputs = [...new Set(told.nets.flatMap((net) => net.inputs))];
  byId("slots").append(...inputs.map(slot));
  byId("opacity").oninput = opacity;
  let before = 60;
  document.onkeydown = (event) => {
    if (event.key.toLowerCase() !== "o" || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
    const now = Number(byId("opacity").value);
    byId("opacity").value = now ? 0 : before;
    before = now || before;
    opacity();
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(inputs[0], event.dataTransfer.files[0]);
  };
  say(`images of up to ${told.limits.megapixels} megapixels and ${told.limits.megabytes} MB`);
}

start().catch((error) => say(error.message, true));
