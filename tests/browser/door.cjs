// Works the editor as an artist does, from an empty canvas to a result: `node door.cjs < job.json > report.json`.
//
// A job is {url, clip: base64 of a film, graph, pictures: editor files, shots: FOLDER, only?: NAMES}. The report has what was
// seen, by the names of PLAYS, and how many actions the first two took. An action is one thing that a hand does: a
// click, a double-click, a drag, a drop, a word that is typed.
"use strict";

const fs = require("fs");
const path = require("path");
const { FLAGS, closeDialogs, openEditor } = require("../../tools/editor.cjs");
const { chromium } = require("playwright-core");

const BLUEPRINT = "Upscale a video (Cascade VSR)";
const FILM = "VSRUpscaleFilm";

const graph = (page) => page.evaluate(() => window.app.graph._nodes.map((node) => ({
  id: node.id, type: node.type, title: node.title,
  links: node.inputs.filter((input) => input.link !== null).map((input) => input.name),
  values: Object.fromEntries((node.widgets || []).filter((each) => each.serialize !== false && typeof each.value !== "object")
    .map((each) => [each.name, each.value])),
})));

const runs = (page) => page.evaluate(async () => Object.values(await (await fetch("/history")).json()).map(
  ({ status, outputs }) => ({ status: status.status_str, kinds: status.messages.map(([kind]) => kind),
    files: Object.values(outputs).flatMap((output) => (output.images || output.gifs || output.video || [])
      .map((file) => [file.subfolder, file.filename])) })));

const queued = (page) => page.evaluate(async () => {
  const { queue_running, queue_pending } = await (await fetch("/queue")).json();
  return [queue_running.length, queue_pending.length];
});

const runButton = (page) =>
  page.getByTestId("queue-button").or(page.getByRole("button", { name: "Run", exact: true })).first();

async function idle(page, more, seconds = 300) {
  const end = Date.now() + 1000 * seconds;
  while (Date.now() < end) {
    const [running, pending] = await queued(page);
    if ((await runs(page)).length >= more && !running && !pending) return;
    await page.waitForTimeout(300);
  }
  throw new Error(`still busy after ${seconds} s: ${await queued(page)}`);
}

async function busy(page, seconds = 120) {
  const end = Date.now() + 1000 * seconds;
  while (Date.now() < end) {
    if ((await queued(page))[0]) return;
    await page.waitForTimeout(50);
  }
  throw new Error("nothing runs");
}

/** Drop a file onto the canvas. */
async function drop(page, data, name, [x, y]) {
  await page.evaluate(async ([data, name, x, y]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type: "video/mp4" }));
    const canvas = document.querySelector("#graph-canvas");
    for (const kind of ["dragenter", "dragover", "drop"])
      canvas.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer, clientX: x, clientY: y }));
  }, [data, name, x, y]);
}

async function empty(page) {
  await page.evaluate(() => { window.app.graph.clear(); window.app.canvas.ds.reset(); });
  await page.waitForTimeout(500);
}

async function load(page, data, values = {}) {
  await page.evaluate(async ([data, values, kind]) => {
    await window.app.loadGraphData({ ...data, id: crypto.randomUUID() });
    const node = window.app.graph._nodes.find((each) => each.type === kind);
    for (const [name, value] of Object.entries(values)) node.widgets.find((each) => each.name === name).value = value;
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
  }, [data, values, FILM]);
  await page.waitForTimeout(700);
}

/** Do what opens the search, again where it did not: a busy machine tears the two clicks of a double-click apart. */
async function openSearch(page, act) {
  const box = page.locator('[role="dialog"] input, input[role="combobox"]').first();
  for (let attempt = 0; attempt < 6; attempt++) {
    await act(attempt);
    if (await box.waitFor({ timeout: 10000 }).then(() => true, () => false)) return;
    await page.keyboard.press("Escape");
    await page.mouse.click(300, 800);
    await page.waitForTimeout(1000);
  }
  throw new Error("the search did not open in six attempts");
}

const focus = (page) => page.evaluate(() => { document.activeElement?.blur(); window.app.canvas.canvas.focus(); });

const PLAYS = {
  /** Search, one blueprint, Run. */
  async sample(page) {
    await empty(page);
    const before = (await runs(page)).length;
    let actions = 0;
    await openSearch(page, () => page.mouse.dblclick(800, 500)), actions++;
    await page.keyboard.type("upscale video"), actions++;
    const found = page.getByText(BLUEPRINT).first();
    await found.waitFor();
    const place = await found.evaluate((element) => {
      const box = element.getBoundingClientRect();
      return [box.top, window.innerHeight];
    });
    await found.click(), actions++;
    await runButton(page).click(), actions++;
    await idle(page, before + 1, 240);
    return { actions, place, nodes: await graph(page), run: (await runs(page)).at(-1) };
  },

  /** The own clip is dropped, its socket dragged out, the rest as before. */
  async own(page, job) {
    await empty(page);
    const before = (await runs(page)).length;
    let actions = 0;
    await drop(page, job.clip, "mine.mp4", [500, 400]), actions++;
    await page.waitForFunction(() => window.app.graph._nodes.some((node) => node.type === "LoadVideo"
      && node.widgets[0].value.startsWith("mine")));
    const place = () => page.evaluate(() => {
      const [x, y] = window.app.graph._nodes[0].getConnectionPos(false, 0);
      const { scale, offset } = window.app.canvas.ds;
      const area = window.app.canvas.canvas.getBoundingClientRect();
      return [area.x + (x + offset[0]) * scale, area.y + (y + offset[1]) * scale];
    });
    let [earlier, socket] = [null, await place()];
    while (String(earlier) !== String(socket)) { // the node grows when its preview comes
      await page.waitForTimeout(2000);
      [earlier, socket] = [socket, await place()];
    }
    // Letting a link go opens the search, or with Shift, by when the editor was installed first.
    await openSearch(page, async (attempt) => {
      await page.mouse.move(...socket);
      await page.mouse.down();
      await page.mouse.move(socket[0] + 100, socket[1] + 20, { steps: 5 });
      if (attempt % 2) await page.keyboard.down("Shift");
      await page.mouse.move(1100, 500, { steps: 5 });
      await page.mouse.up();
      if (attempt % 2) await page.keyboard.up("Shift");
    }), actions++;
    await page.keyboard.type("upscale video"), actions++;
    const found = page.getByText(BLUEPRINT).first();
    await found.waitFor();
    await found.click(), actions++;
    await runButton(page).click(), actions++;
    await idle(page, before + 1, 240);
    return { actions, nodes: await graph(page), run: (await runs(page)).at(-1) };
  },

  /** The page is loaded anew in the middle of a run. */
  async reload(page, job) {
    await load(page, job.graph, { first_seconds: 0.4 });
    await page.waitForTimeout(1500); // the editor keeps a draft of the graph
    const [before, nodes] = [(await runs(page)).length, await graph(page)];
    await runButton(page).click();
    await busy(page);
    await page.reload({ waitUntil: "domcontentloaded" });
    await page.waitForFunction((kind) => window.app?.graph?._nodes.some((node) => node.type === kind), FILM);
    const stillBusy = (await queued(page))[0];
    await idle(page, before + 1);
    await page.waitForTimeout(2500);
    const shown = await page.evaluate((kind) => {
      const node = window.app.graph._nodes.find((each) => each.type === kind);
      const output = window.app.nodeOutputs[node.id] || {};
      return Object.values(output).flat().filter((each) => each?.filename).map((each) => each.filename);
    }, FILM);
    return { stillBusy, before: nodes, nodes: await graph(page), shown, run: (await runs(page)).at(-1) };
  },

  /** A run is stopped by hand; the next one ends well. */
  async interrupt(page, job) {
    await load(page, job.graph, { first_seconds: 0.5 });
    const before = (await runs(page)).length;
    await runButton(page).click();
    await busy(page);
    await page.waitForTimeout(800);
    await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Interrupt"));
    await idle(page, before + 1);
    const stopped = (await runs(page)).at(-1);
    const messages = await page.locator('[role="dialog"]').count();
    await runButton(page).click();
    await idle(page, before + 2);
    return { stopped, messages, run: (await runs(page)).at(-1) };
  },

  /** Two runs are queued at once, with other settings. */
  async queue(page, job) {
    await load(page, job.graph, { first_seconds: 0.12 });
    const before = (await runs(page)).length;
    await runButton(page).click();
    await page.evaluate((kind) => {
      const node = window.app.graph._nodes.find((each) => each.type === kind);
      node.widgets.find((each) => each.name === "target.scale").value = 2;
    }, FILM);
    await runButton(page).click();
    await idle(page, before + 2);
    return (await runs(page)).slice(-2);
  },

  /** A node that was removed or changed comes back; a copy has its values. */
  async edit(page, job) {
    await load(page, job.graph, { first_seconds: 1.5, look: "draft" });
    const track = () => page.evaluate(() => {
      const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
      (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
    });
    const select = () => page.evaluate((kind) => {
      window.app.canvas.deselectAll();
      window.app.canvas.select(window.app.graph._nodes.find((node) => node.type === kind));
    }, FILM);
    const before = await graph(page);
    await page.evaluate((kind) => {
      window.app.graph._nodes.find((node) => node.type === kind).widgets.find((each) => each.name === "look").value = "best";
    }, FILM);
    await track();
    const changed = await graph(page);
    await focus(page);
    await page.keyboard.press("Control+z");
    await page.waitForTimeout(1500);
    const undone = await graph(page);
    await focus(page);
    await select();
    await page.keyboard.press("Control+c");
    await page.keyboard.press("Control+v");
    await page.waitForTimeout(1000);
    const pasted = await graph(page);
    await track();
    await focus(page);
    await select();
    await page.keyboard.press("Delete");
    await page.waitForTimeout(700);
    await track();
    const removed = await graph(page);
    await focus(page);
    await page.keyboard.press("Control+z");
    await page.waitForTimeout(1500);
    return { before, changed, undone, pasted, removed, restored: await graph(page) };
  },

  /** The template for pictures, with those of the sample removed: Run says what is missing, and runs nothing. */
  async refused(page, job) {
    await page.evaluate(async (data) => {
      await window.app.loadGraphData({ ...data, id: crypto.randomUUID() });
      for (const node of window.app.graph._nodes.filter((each) => ["ImageFromBatch", "VSRSampleClip"].includes(each.type)))
        window.app.graph.remove(node);
    }, job.pictures);
    await page.waitForTimeout(700);
    const before = (await runs(page)).length;
    await runButton(page).click();
    await page.waitForFunction(() => Object.keys(window.app.lastNodeErrors || {}).length);
    const found = await page.evaluate(() => Object.values(window.app.lastNodeErrors).map((each) =>
      [each.class_type, each.errors.map((error) => error.details)]));
    return { found, queue: await queued(page), more: (await runs(page)).length - before };
  },

  /** The file of a result is dropped onto an empty canvas: its graph opens. */
  async back(page, job) {
    await load(page, job.graph, { first_seconds: 0.08, look: "draft" });
    const [nodes, before] = [await graph(page), (await runs(page)).length];
    await runButton(page).click();
    await idle(page, before + 1);
    const run = (await runs(page)).at(-1);
    const [[subfolder, filename]] = run.files;
    const data = await page.evaluate(async ([subfolder, filename]) => {
      const answer = await fetch(`/view?${new URLSearchParams({ filename, subfolder, type: "output" })}`);
      const bytes = new Uint8Array(await answer.arrayBuffer());
      return btoa(Array.from(bytes, (each) => String.fromCharCode(each)).join(""));
    }, [subfolder, filename]);
    await empty(page);
    await drop(page, data, filename, [700, 450]);
    await page.waitForFunction((kind) => window.app.graph._nodes.some((node) => node.type === kind), FILM);
    await page.waitForTimeout(700);
    return { before: nodes, nodes: await graph(page), filename };
  },
};

async function main() {
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  const report = { seen: {}, console: [] };
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  try {
    const page = await openEditor(browser, job.url, report.console);
    await page.waitForTimeout(2000); // blueprints are fetched after the editor is ready
    for (const [name, play] of Object.entries(PLAYS)) {
      if (job.only && !job.only.includes(name)) continue;
      await closeDialogs(page);
      try {
        report.seen[name] = await play(page, job);
      } catch (error) {
        report.seen[name] = { error: error.message };
      }
      await page.screenshot({ path: path.join(job.shots, `${name}.png`) });
    }
  } finally {
    await browser.close();
  }
  process.stdout.write(JSON.stringify(report));
}

main().catch((error) => { console.error(error); process.exit(1); });
