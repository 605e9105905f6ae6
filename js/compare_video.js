// Compare Video: two clips over each other on the node, in motion.
//
// The server makes one small film that holds both clips in every frame (nodes/host/comparisons.py): they cannot get out
// of step. A frame of it is asked for in the middle of its time: a step lands on it exactly.
// Its pixels are copied by a VideoFrame, which also tells the time of what it holds. Chromium without a GPU keeps every
// frame that a canvas or a bitmap takes from a <video> itself, up to 512 MB.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TYPE = "VSRCompareVideo";
const ROUTE = "/cascadevsr/comparisons";
const SIDES = ["before", "after"];
const MODES = ["split", "side", "difference", "blink"];
const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
const GAINS = [1, 4, 16];
const BLINK = 500; // ms that each clip is shown
const COUNT = 400; // ms between two numbers of frames that are shown while playing: each leaves 0.3 MB to be collected
const SETTLE = 200; // ms that the picture stands still before its full size is asked for
const SAME_SHAPE = 0.02; // shapes that differ by less are those of rounded sizes, and lie over each other exactly
const MOST_ZOOM = 64;
const TRIES = 50; // looks at a film that does not show yet what it was asked for
const PATIENCE = 20; // ms between two of them
const WORDS = {
  empty: "Run to compare.",
  waiting: "Waiting for another comparison ...",
  reading: "Reading the clips ...",
  encoding: "Preparing the preview: {done} of {total} frames",
  removed: "The preview was removed to make room. Run again.",
  lost: "The server does not answer.",
  unplayable: "This browser cannot play H.264.",
  before: "before",
  after: "after",
  frame: "frame",
  cut: "scene cut",
  joint: "segment joint",
  play: "Play or pause (Space)",
  previous: "One frame back (Left; with Shift 10)",
  next: "One frame on (Right; with Shift 10)",
  split: "Split: move the mouse to wipe (1)",
  side: "Side by side (2)",
  difference: "Difference (3)",
  blink: "Blink (4)",
  gain: "Times the difference (G)",
  speed: "Speed (S)",
  fit: "Whole picture (0); zoom with the wheel, drag to move",
  full: "Full screen (F)",
};
const ICONS = { play: "▶", pause: "❚❚", previous: "◀❙", next: "❙▶", split: "◧", side: "◫", difference: "Δ", blink: "◐",
  fit: "⊡", full: "⤢" };
const STYLE = `
.vsr-compare { display: flex; flex-direction: column; width: 100%; height: 100%; min-height: 220px; outline: none;
  box-sizing: border-box; border-radius: 4px; overflow: hidden; contain: layout paint style; background: #111; color: #ddd;
  font: 12px/1.3 sans-serif; user-select: none; }
.vsr-compare:focus-within { box-shadow: inset 0 0 0 1px #6aa0ff; }
.vsr-compare-stage { position: relative; flex: 1; min-height: 0; overflow: hidden; cursor: crosshair; touch-action: none; }
.vsr-compare-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.vsr-compare-stage video { position: absolute; left: 0; top: 0; width: 2px; height: 2px; opacity: 0.01; pointer-events: none; }
.vsr-compare-note { position: absolute; left: 50%; top: 50%; transform: translate(-50%, -50%); max-width: 90%;
  padding: 4px 10px; border-radius: 4px; background: #000b; text-align: center; white-space: pre-wrap; user-select: text; }
.vsr-compare-note:empty { display: none; }
.vsr-compare-time { position: relative; height: 16px; margin: 0 8px; flex: none; }
.vsr-compare-time input { position: absolute; inset: 0; width: 100%; height: 16px; margin: 0; padding: 0; accent-color: #6aa0ff; }
.vsr-compare-time i { position: absolute; top: 0; width: 3px; height: 5px; margin-left: -1px; cursor: pointer; z-index: 1; }
.vsr-compare-time i.cut { background: #fff; }
.vsr-compare-time i.joint { background: #fb3; top: 11px; }
.vsr-compare-bar { display: flex; gap: 3px; padding: 2px 6px 4px; align-items: center; flex: none; flex-wrap: wrap; }
.vsr-compare-bar button, .vsr-compare-bar select { min-width: 26px; height: 22px; padding: 0 5px; border: 1px solid #444;
  border-radius: 3px; background: #222; color: #ddd; font: 12px/1 sans-serif; cursor: pointer; }
.vsr-compare-bar button:hover { background: #333; }
.vsr-compare-bar button[aria-pressed="true"] { background: #2f5fb3; color: #fff; }
.vsr-compare-bar output { flex: 1; min-width: 90px; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
`;

let words = null; // in the language of the editor, where the pack has it

async function translated() {
  if (!words) {
    words = { ...WORDS };
    try {
      const all = await (await api.fetchApi("/i18n")).json();
      const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale");
      Object.assign(words, all[language]?.compareVideo);
    } catch { /* English, then */ }
  }
  return words;
}

function made(tag, parent, attributes = {}) {
  const element = Object.assign(document.createElement(tag), attributes);
  parent?.append(element);
  return element;
}

const wait = (time) => new Promise((done) => setTimeout(done, time));

/** Both clips' pixels of the frame that a film shows, each on a canvas of its own. */
class Copies {
  constructor() {
    this.canvases = this.pixels = null;
    this.offered = "VideoFrame" in window; // not over plain HTTP from another machine
  }

  /** Copy both parts; gives the time of the frame in s, null where that is not offered, NaN where there is none yet. */
  async take(video, sides) {
    if (!this.offered) return null;
    let frame;
    try {
      frame = new VideoFrame(video);
    } catch {
      return NaN;
    }
    const time = frame.timestamp / 1e6;
    try {
      this.pixels ??= SIDES.map((side) => new ImageData(sides[side].box[2], sides[side].box[3]));
      await Promise.all(this.pixels.map(({ data }, number) => {
        const [x, y, width, height] = sides[SIDES[number]].box;
        return frame.copyTo(data, { format: "RGBA", rect: { x, y, width, height } });
      }));
      this.canvases ??= this.pixels.map(({ width, height }) => made("canvas", null, { width, height }));
      this.canvases.forEach((canvas, number) => canvas.getContext("2d").putImageData(this.pixels[number], 0, 0));
    } catch { // a browser that cannot convert
      this.drop();
      this.offered = false;
      return null;
    } finally {
      frame.close();
    }
    return time;
  }

  drop() {
    for (const canvas of this.canvases ?? []) canvas.width = canvas.height = 0;
    this.canvases = this.pixels = null;
  }
}

class Viewer {
  constructor(node) {
    this.node = node;
    this.words = WORDS;
    this.key = this.facts = null;
    this.index = 0; // of the frame that is shown
    this.wanted = null; // frame that is being gone to
    this.view = { zoom: 1, x: 0.5, y: 0.5 }; // the point in the middle, as shares of the picture
    this.wipe = 0.5;
    this.flip = false;
    this.details = {}; // parts in full size, by side
    this.paints = 0;
    this.counted = 0; // when the number of the frame was shown last
    this.copies = new Copies();
    this.taking = false;
    this.build();
    translated().then((found) => { this.words = found; this.name(); });
    this.watch = setInterval(() => this.tend(), BLINK);
  }

  get settings() {
    return { mode: "split", speed: 1, gain: 4, ...this.node.properties?.compare_video };
  }

  set(change) {
    this.node.properties = { ...this.node.properties, compare_video: { ...this.settings, ...change } };
    this.video.playbackRate = this.settings.speed;
    this.update();
    this.invalidate();
  }

  // The element

  build() {
    if (!document.getElementById("vsr-compare-style")) {
      made("style", document.head, { id: "vsr-compare-style", textContent: STYLE });
    }
    this.root = made("div", null, { className: "vsr-compare", tabIndex: 0 });
    this.root.dataset.captureWheel = "true";
    this.stage = made("div", this.root, { className: "vsr-compare-stage" });
    this.video = made("video", this.stage, { muted: true, playsInline: true, loop: true, preload: "auto" });
    this.canvas = made("canvas", this.stage);
    this.note = made("div", this.stage, { className: "vsr-compare-note" });
    this.time = made("div", this.root, { className: "vsr-compare-time" });
    this.range = made("input", this.time, { type: "range", min: 0, max: 0, value: 0 });
    this.range.oninput = () => { this.pause(); this.go(Number(this.range.value)); };
    const bar = made("div", this.root, { className: "vsr-compare-bar" });
    this.buttons = {};
    const button = (name, act) => {
      this.buttons[name] = made("button", bar, { type: "button", textContent: ICONS[name] ?? "", onclick: act });
    };
    button("previous", () => this.step(-1));
    button("play", () => this.toggle());
    button("next", () => this.step(1));
    this.speed = made("select", bar);
    for (const speed of SPEEDS) made("option", this.speed, { value: speed, textContent: `${speed}×` });
    this.speed.onchange = () => this.set({ speed: Number(this.speed.value) });
    for (const mode of MODES) button(mode, () => this.set({ mode }));
    button("gain", () => this.cycle("gain", GAINS));
    button("fit", () => this.fit());
    button("full", () => this.full());
    this.counter = made("output", bar);
    this.video.addEventListener("error", () => this.video.getAttribute("src") && this.say(this.words.unplayable));
    this.listen();
    this.resized = new ResizeObserver(() => this.invalidate());
    this.resized.observe(this.stage);
    this.name();
    this.update();
  }

  name() {
    for (const [name, button] of Object.entries(this.buttons)) {
      button.title = this.words[name];
      button.setAttribute("aria-label", this.words[name]);
    }
    this.speed.title = this.words.speed;
    this.range.setAttribute("aria-label", this.words.frame);
    if (!this.key) this.say(this.words.empty);
  }

  listen() {
    const inside = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    let held = null;
    for (const name of ["pointerdown", "pointermove", "pointerup", "mousedown", "dblclick"]) {
      this.root.addEventListener(name, (event) => event.button !== 1 && event.stopPropagation()); // no drag of the node
    }
    // Nodes 2.0 leaves wheel and keys to what has the focus: the pointer brings it where nothing is being written.
    this.root.addEventListener("pointermove", () => {
      if (/^(BODY|CANVAS)$/.test(document.activeElement?.tagName ?? "BODY")) {
        this.root.focus({ preventScroll: true });
        this.lent = true;
      }
    });
    this.root.addEventListener("pointerleave", () => {
      if (this.lent) this.root.blur();
      this.lent = false;
    });
    this.stage.addEventListener("pointerdown", (event) => {
      this.root.focus({ preventScroll: true });
      this.lent = false;
      if (event.button !== 0) return;
      held = event.pointerType === "mouse" ? inside(event) : null;
      this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener("pointermove", (event) => {
      const at = inside(event);
      if (held) {
        this.move(at[0] - held[0], at[1] - held[1]);
        held = at;
      } else {
        this.wipe = Math.min(1, Math.max(0, at[0]));
        this.invalidate();
      }
    });
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, () => { held = null; });
    this.stage.addEventListener("dblclick", () => this.fit());
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.zoom(Math.exp(-Math.sign(event.deltaY) * 0.2), inside(event));
    }, { passive: false });
    const keys = {
      " ": () => this.toggle(), Home: () => this.step(-Infinity), End: () => this.step(Infinity),
      ArrowLeft: (many) => this.step(-many), ArrowRight: (many) => this.step(many),
      ArrowUp: () => this.jump(-1), ArrowDown: () => this.jump(1),
      "+": () => this.zoom(1.25), "-": () => this.zoom(0.8), 0: () => this.fit(), f: () => this.full(),
      g: () => this.cycle("gain", GAINS), s: () => this.cycle("speed", SPEEDS),
    };
    MODES.forEach((mode, number) => { keys[number + 1] = () => this.set({ mode }); });
    this.root.addEventListener("keydown", (event) => {
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey || event.target === this.speed) return;
      event.preventDefault();
      event.stopPropagation();
      act(event.shiftKey ? 10 : 1);
    });
  }

  say(text) {
    this.note.textContent = text;
  }

  update() {
    const { mode, speed, gain } = this.settings;
    for (const each of MODES) this.buttons[each].setAttribute("aria-pressed", each === mode);
    this.buttons.play.textContent = this.playing ? ICONS.pause : ICONS.play;
    this.buttons.gain.textContent = `×${gain}`;
    this.buttons.gain.style.display = mode === "difference" ? "" : "none";
    this.speed.value = speed;
    this.count();
  }

  /** Say which frame is shown. */
  count() {
    const now = performance.now();
    if (!this.facts || (this.playing && now - this.counted < COUNT)) return;
    this.counted = now;
    this.range.value = this.index;
    const numbers = SIDES.map((side) => this.number(side));
    const shown = numbers[0] === numbers[1] ? numbers[0] : numbers.join(" | ");
    this.counter.textContent = `${this.words.frame} ${shown}`;
  }

  described(side) {
    const { size, frames, rate } = this.facts.sides[side];
    return `${this.words[side]}: ${size.join("x")}, ${frames} frames, ${Math.round(rate * 1000) / 1000} fps`;
  }

  /** The number of the frame of a clip that is shown, from 0. */
  number(side, index = this.index) {
    const { numbers, first } = this.facts.sides[side];
    return numbers ? numbers[index] : first + index;
  }

  // From the server

  /** Show again what the node showed: the editor makes nodes anew at undo and at reload. */
  async restore() {
    if (this.key || this.gone) return;
    const output = keyIn(app.nodeOutputs?.[this.node.id]);
    if (output && !isInside(this.node)) return this.show(output);
    const path = pathOf(this.node);
    if (!path) return;
    const query = new URLSearchParams(path);
    const answer = await api.fetchApi(`${ROUTE}?${query}`).catch(() => null);
    const key = answer?.ok && (await answer.json()).key;
    if (key && !this.key && !this.gone) this.show(key);
  }

  async show(key) {
    if (key === this.key) return;
    this.key = key;
    while (key === this.key) {
      const answer = await api.fetchApi(`${ROUTE}/${key}?${new URLSearchParams(pathOf(this.node) ?? {})}`).catch(() => null);
      if (key !== this.key) return;
      if (!answer?.ok) return this.say(this.words.lost);
      const facts = await answer.json();
      if (key !== this.key) return;
      if (facts.state === "ready") return this.open(facts);
      const text = facts.text || (this.words[facts.state] ?? facts.state);
      this.say(text.replace("{done}", facts.done).replace("{total}", facts.total));
      if (facts.state === "failed" || facts.state === "removed") return;
      await wait(300);
    }
  }

  open(facts) {
    this.pause();
    this.forget();
    this.copies = new Copies();
    this.facts = facts;
    this.index = 0;
    this.wanted = null;
    this.ready = false;
    this.range.max = facts.times.length - 1;
    this.counter.title = SIDES.map((side) => this.described(side)).join("\n");
    this.marks();
    this.video.onloadeddata = () => {
      this.ready = true;
      this.video.playbackRate = this.settings.speed;
      this.say("");
      this.wanted ??= 0;
      this.seek();
    };
    this.video.src = api.apiURL(`/view?${new URLSearchParams(facts.file)}`);
    this.update();
  }

  marks() {
    for (const mark of this.time.querySelectorAll("i")) mark.remove();
    const last = this.facts.times.length - 1;
    for (const kind of ["cut", "joint"]) {
      for (const frame of this.facts[`${kind}s`] ?? []) {
        const mark = made("i", this.time, { className: kind, title: `${this.words[kind]}: ${this.number("before", frame)}` });
        mark.style.left = `calc(8px + (100% - 16px) * ${frame / last})`; // the middle of a thumb of 16 px
        mark.onclick = () => { this.pause(); this.go(frame); };
      }
    }
  }

  // Time

  get playing() {
    return !!this.facts && !this.video.paused;
  }

  frameAt(seconds) {
    const { times } = this.facts;
    let [low, high] = [0, times.length];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (times[middle] <= seconds + 5e-4) low = middle;
      else high = middle;
    }
    return low;
  }

  /** Show a frame; while one is being fetched, only the newest wish is kept. */
  go(index) {
    if (!this.facts) return;
    const busy = this.wanted !== null;
    this.wanted = Math.min(this.facts.times.length - 1, Math.max(0, index));
    if (!busy && this.ready) this.seek();
  }

  async seek() {
    const { facts, video } = this;
    while (this.wanted !== null && facts === this.facts) {
      const wanted = this.wanted;
      const until = facts.times[wanted + 1] ?? facts.end;
      video.currentTime = (facts.times[wanted] + until) / 2;
      await new Promise((done) => video.addEventListener("seeked", done, { once: true }));
      let tries = 0;
      while (!(await this.take(wanted)) && facts === this.facts) {
        if (++tries === TRIES) this.copies.offered = false; // of another time than it says: the film itself, then
        else await wait(PATIENCE);
      }
      if (facts !== this.facts) return;
      if (this.wanted === wanted) this.wanted = null;
    }
  }

  step(many) {
    this.pause();
    this.go((this.wanted ?? this.index) + many);
  }

  /** Go to the next mark, or back to the one before. */
  jump(way) {
    if (!this.facts) return;
    this.pause();
    const at = this.wanted ?? this.index;
    const all = [0, ...this.facts.cuts, ...(this.facts.joints ?? []), this.facts.times.length - 1].sort((a, b) => a - b);
    const found = way > 0 ? all.find((frame) => frame > at) : all.findLast((frame) => frame < at);
    if (found !== undefined) this.go(found);
  }

  toggle() {
    if (!this.ready) return;
    if (this.playing) this.pause();
    else {
      this.video.play().then(() => this.update(), () => this.update());
      this.follow();
    }
    this.update();
  }

  pause() {
    if (!this.playing) return;
    this.video.pause();
    this.wanted = this.index; // the film may stand a little after what was drawn
    this.seek();
    this.update();
  }

  follow() {
    const { facts } = this;
    const next = (_, frame) => {
      if (facts !== this.facts || !this.playing) return;
      this.follow();
      this.take(null, frame?.mediaTime ?? this.video.currentTime);
    };
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(next);
    else requestAnimationFrame(() => next());
  }

  /** Take what the film shows now; tells whether that is frame `wanted`, or any if null: the one at `time`. */
  async take(wanted, time) {
    if (this.taking) return false; // of two wishes at once the next look serves the second
    const { facts, copies } = this;
    this.taking = true;
    const found = await copies.take(this.video, facts.sides).finally(() => { this.taking = false; });
    if (facts !== this.facts) return copies.drop();
    if (Number.isNaN(found)) return false;
    const index = found === null ? wanted ?? this.frameAt(time) : this.frameAt(found);
    if (wanted !== null && index !== wanted) return false;
    this.index = index;
    this.count();
    this.invalidate();
    return true;
  }

  cycle(name, values) {
    this.set({ [name]: values[(values.indexOf(this.settings[name]) + 1) % values.length] });
  }

  /** Blink, and notice what no event tells: the zoom of the graph, and a node that is out of sight. */
  tend() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width) {
      if (this.playing) this.pause();
      return;
    }
    if (this.settings.mode === "blink") {
      this.flip = !this.flip;
      this.invalidate();
    } else if (Math.abs(this.pixels(box)[0] - this.canvas.width) > 2) this.invalidate();
  }

  // Place

  fit() {
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.invalidate();
  }

  full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.requestFullscreen?.();
  }

  /** The part of the canvas that shows a picture: all, or the half at a share `x` of its width. */
  field(x = 0) {
    const { width, height } = this.canvas;
    if (this.settings.mode !== "side") return [0, 0, width, height];
    return x < 0.5 ? [0, 0, width >> 1, height] : [width >> 1, 0, width - (width >> 1), height];
  }

  /** Where the picture lies on the canvas: left, top, width, height in px. */
  picture([left, top, width, height]) {
    const [, , w, h] = this.facts.sides.after.box;
    const scale = Math.min(width / w, height / h) * this.view.zoom;
    const { x, y } = this.view;
    return [left + width / 2 - x * w * scale, top + height / 2 - y * h * scale, w * scale, h * scale];
  }

  move(dx, dy) {
    if (!this.facts) return;
    const [, , width, height] = this.picture(this.field());
    this.view.x = Math.min(1, Math.max(0, this.view.x - (dx * this.canvas.width) / width));
    this.view.y = Math.min(1, Math.max(0, this.view.y - (dy * this.canvas.height) / height));
    this.invalidate();
  }

  /** Zoom about a point of the canvas, given in shares of it. */
  zoom(factor, [x, y] = [0.5, 0.5]) {
    if (!this.facts) return;
    const field = this.field(x);
    const at = [x * this.canvas.width, y * this.canvas.height];
    const before = this.picture(field);
    const share = [0, 1].map((axis) => (at[axis] - before[axis]) / before[axis + 2]);
    this.view.zoom = Math.min(MOST_ZOOM, Math.max(1, this.view.zoom * factor));
    if (this.view.zoom === 1) return this.fit();
    const after = this.picture(field);
    this.view.x += share[0] - (at[0] - after[0]) / after[2];
    this.view.y += share[1] - (at[1] - after[1]) / after[3];
    this.move(0, 0);
  }

  // Picture

  pixels(box = this.canvas.getBoundingClientRect()) {
    const most = 2560;
    const scale = Math.min(window.devicePixelRatio || 1, most / Math.max(1, box.width, box.height));
    return [Math.max(1, Math.round(box.width * scale)), Math.max(1, Math.round(box.height * scale))];
  }

  invalidate() {
    if (this.painting || this.gone) return;
    this.painting = requestAnimationFrame(() => {
      this.painting = null;
      this.paint();
    });
  }

  /** Where a clip lies on the canvas: over the picture, or as large as fits where its shape is another. */
  place(side, field) {
    const [left, top, width, height] = this.picture(field);
    const [, , w, h] = this.facts.sides[side].box;
    const shape = w / h / (width / height);
    if (Math.abs(Math.log(shape)) < SAME_SHAPE) return [left, top, width, height];
    const [fitW, fitH] = shape > 1 ? [width, width * (h / w)] : [height * (w / h), height];
    return [left + (width - fitW) / 2, top + (height - fitH) / 2, fitW, fitH];
  }

  draw(context, side, field, clip = field) {
    const [left, top, width, height] = this.place(side, field);
    context.save();
    context.beginPath();
    context.rect(...clip);
    context.clip();
    const copy = this.copies.canvases?.[SIDES.indexOf(side)];
    if (copy) context.drawImage(copy, left, top, width, height);
    else context.drawImage(this.video, ...this.facts.sides[side].box, left, top, width, height);
    const detail = this.details[side];
    if (detail && detail.index === this.index && !this.playing) {
      const [x0, y0, x1, y1] = detail.box;
      context.drawImage(detail.bitmap, left + x0 * width, top + y0 * height, (x1 - x0) * width, (y1 - y0) * height);
    }
    context.restore();
  }

  paint() {
    const { canvas, facts } = this;
    const [width, height] = this.pixels();
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { alpha: false });
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (!facts || !this.ready) return;
    context.imageSmoothingQuality = this.playing ? "low" : "high";
    const { mode, gain } = this.settings;
    const field = this.field();
    if (mode === "side") SIDES.forEach((side, number) => this.draw(context, side, this.field(number)));
    else if (mode === "blink") this.draw(context, SIDES[Number(this.flip)], field);
    else if (mode === "split") {
      const at = Math.round(this.wipe * width);
      this.draw(context, "after", field, [at, 0, width - at, height]);
      this.draw(context, "before", field, [0, 0, at, height]);
      context.fillStyle = "#fff";
      context.fillRect(at - 1, 0, 2, height);
    } else {
      this.draw(context, "after", field);
      context.globalCompositeOperation = "difference";
      this.draw(context, "before", field);
      context.globalCompositeOperation = "lighter";
      for (let factor = 1; factor < gain; factor *= 2) context.drawImage(canvas, 0, 0);
      context.globalCompositeOperation = "source-over";
    }
    this.label(context, mode);
    this.paints += 1;
    clearTimeout(this.settling);
    if (!this.playing) this.settling = setTimeout(() => this.sharpen(), SETTLE);
  }

  label(context, mode) {
    const { width, height } = context.canvas;
    const size = 12 * (window.devicePixelRatio || 1);
    context.font = `${size}px sans-serif`;
    const write = (side, x, align) => {
      const text = `${this.words[side]} ${this.facts.sides[side].size.join("x")}`;
      const long = context.measureText(text).width + size;
      context.fillStyle = "#000a";
      context.fillRect(align === "left" ? x : x - long, height - size * 1.6, long, size * 1.6);
      context.fillStyle = "#fff";
      context.textAlign = align;
      context.fillText(text, align === "left" ? x + size / 2 : x - size / 2, height - size * 0.5);
    };
    if (mode === "blink") write(SIDES[Number(this.flip)], 0, "left");
    else if (mode === "side") SIDES.forEach((side, number) => write(side, number * (width >> 1), "left"));
    else if (mode === "split") {
      write("before", 0, "left");
      write("after", width, "right");
    }
  }

  // Full size

  /** Ask for what is seen, where the small film has fewer pixels than the canvas shows and the clip has more. */
  sharpen() {
    if (this.playing || this.gone || !this.facts) return;
    SIDES.forEach((side, number) => {
      const { box, size } = this.facts.sides[side];
      const field = this.field(number);
      const [left, top, width, height] = this.place(side, field);
      if (box[2] >= size[0] || width <= box[2] * 1.02) return;
      const share = (at, start, length, pixels, up) => {
        const part = Math.min(1, Math.max(0, (at - start) / length)) * pixels;
        return (up ? Math.ceil(part) : Math.floor(part)) / pixels;
      };
      const seen = [
        share(field[0], left, width, size[0], false), share(field[1], top, height, size[1], false),
        share(field[0] + field[2], left, width, size[0], true), share(field[1] + field[3], top, height, size[1], true),
      ];
      if (!(seen[0] < seen[2] && seen[1] < seen[3])) return;
      const shown = [(seen[2] - seen[0]) * width, (seen[3] - seen[1]) * height].map((length) => Math.ceil(length));
      this.fetchPart(side, seen, shown);
    });
  }

  async fetchPart(side, box, [width, height]) {
    const { key, index } = this;
    const query = new URLSearchParams({ side, frame: index, box: box.map((share) => share.toFixed(7)).join(","), width, height });
    const address = `${ROUTE}/${key}/part?${query}`;
    const old = this.details[side];
    if (old?.address === address) return;
    const answer = await api.fetchApi(address).catch(() => null);
    if (answer?.status !== 200) return;
    const bitmap = await createImageBitmap(await answer.blob());
    if (this.gone || key !== this.key || index !== this.index) return bitmap.close();
    this.details[side]?.bitmap.close();
    this.details[side] = { address, box, index, bitmap };
    this.invalidate();
  }

  forget() {
    for (const detail of Object.values(this.details)) detail.bitmap.close();
    this.details = {};
    this.copies.drop();
  }

  remove() {
    this.gone = true;
    this.key = this.facts = null;
    clearInterval(this.watch);
    clearTimeout(this.settling);
    this.resized.disconnect();
    this.forget();
    this.video.removeAttribute("src");
    this.video.load(); // gives its memory back
    this.canvas.width = 0;
  }
}

const keyIn = (output) => output?.cascadevsr_comparison?.at(-1);
const rootGraph = () => app.rootGraph ?? app.graph;
const isInside = (node) => node.graph !== rootGraph();

/** How the server knows a node: the id of its graph, and its own behind those of the subgraphs around it. */
function pathOf(node) {
  const root = rootGraph();
  if (!/[1-9a-f]/.test(root.id ?? "")) return null; // of a graph that has no id of its own yet
  const inside = (graph) => {
    if (graph === root) return "";
    for (const outer of root._nodes) if (outer.subgraph === graph) return `${outer.id}:`;
    return null; // deeper ones show again after the next run
  };
  const before = node.graph ? inside(node.graph) : null;
  return before === null ? null : { workflow: root.id, node: `${before}${node.id}` };
}

app.registerExtension({
  name: "cascadevsr.CompareVideo",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== TYPE) return;
    const after = (name, act) => {
      const inherited = nodeType.prototype[name];
      nodeType.prototype[name] = function (...values) {
        const result = inherited?.apply(this, values);
        act.apply(this, values);
        return result;
      };
    };
    after("onNodeCreated", function () {
      const viewer = (this.compareVideo = new Viewer(this));
      // serialize: false - what is shown is a result, no setting, and belongs into no file and no prompt.
      const widget = this.addDOMWidget("compare", "compare", viewer.root,
        { serialize: false, hideOnZoom: false, getMinHeight: () => 240 });
      widget.serialize = false;
      this.setSize([Math.max(this.size[0], 520), Math.max(this.size[1], 540)]);
    });
    after("onAdded", function () { setTimeout(() => this.compareVideo.restore()); }); // after its id is read
    after("onConfigure", function () { this.compareVideo.update(); });
    after("onExecuted", function (output) {
      const key = keyIn(output);
      if (key) this.compareVideo.show(key);
    });
    after("onRemoved", function () { this.compareVideo.remove(); });
  },
});
