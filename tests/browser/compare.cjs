// Works Compare Video as a user does, in one renderer: `node compare.cjs < job.json > report.json`.
//
// A job is {url, modern, prompt: of clips with burnt-in numbers, frames: to step to, shots?: FOLDER}. The
// number of a frame is in 12 squares at its top (test_compare_video.py). The report names what was seen, for the test.
"use strict";

const fs = require("fs");
const path = require("path");
const { FLAGS, closeDialogs, memory, openEditor } = require("../../tools/editor.cjs");
const { chromium } = require("playwright-core");

const BITS = 12;

const ready = (page, seconds = 40) =>
  page.waitForFunction(() => {
    const viewer = window.app.graph?._nodes.find((node) => node.type === "VSRCompareVideo")?.compareVideo;
    return viewer?.ready && viewer.wanted === null && viewer.paints > 0;
  }, null, { timeout: 1000 * seconds });

/** Run a function in the page with the viewer and a value. */
const inside = (page, act, value) =>
  page.evaluate(`(${act})(app.graph._nodes.find((node) => node.type === "VSRCompareVideo").compareVideo, ${JSON.stringify(value ?? null)})`);

/** The numbers that are burnt into the two pictures on the canvas, side by side. */
const read = (page) => inside(page, async (viewer, bits) => {
  viewer.fit();
  viewer.set({ mode: "side" });
  await new Promise((done) => setTimeout(done));
  viewer.paint();
  const context = viewer.canvas.getContext("2d");
  return ["before", "after"].map((side, index) => {
    const [left, top, width, height] = viewer.place(side, viewer.field(index));
    let number = 0;
    for (let bit = 0; bit < bits; bit++) {
      const [x, y] = [left + (width * (bit + 2.5)) / 16, top + height / 20];
      if (context.getImageData(Math.round(x), Math.round(y), 1, 1).data[1] > 128) number += 2 ** bit;
    }
    return number;
  });
}, BITS);

const still = (page) => page.waitForFunction(() =>
  window.app.graph._nodes.find((node) => node.type === "VSRCompareVideo").compareVideo.wanted === null);

async function press(page, key) {
  await page.keyboard.press(key);
  await page.waitForTimeout(30);
  await still(page);
}

/** Move the mouse over the picture for some seconds; returns how often it was painted in a second. */
async function wipe(page, box, seconds = 2) {
  const before = await inside(page, (viewer) => viewer.paints);
  const start = Date.now();
  for (let step = 0; Date.now() - start < 1000 * seconds; step++) {
    const share = 0.5 + 0.45 * Math.sin(step / 9);
    await page.mouse.move(box.x + box.width * share, box.y + box.height / 2);
  }
  const rate = (1000 * ((await inside(page, (viewer) => viewer.paints)) - before)) / (Date.now() - start);
  return Math.round(10 * rate) / 10;
}

async function work(page, job, shot, held) {
  const seen = {};
  await page.evaluate(async (data) => {
    await window.app.loadApiJson(data, "compared");
    // a graph of the API form has no id before it is saved once
    await window.app.loadGraphData({ ...window.app.graph.serialize(), id: crypto.randomUUID() });
  }, job.prompt);
  await page.waitForTimeout(500);
  await page.getByTestId("queue-button").or(page.getByRole("button", { name: "Run", exact: true })).first().click();
  if (job.reload) { // in the middle of it
    await page.waitForTimeout(500);
    await page.reload({ waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => window.app?.graph?._nodes.some((node) => node.type === "VSRCompareVideo"));
  }
  await ready(page, 60);
  await closeDialogs(page);
  seen.facts = await inside(page, (viewer) => ({ ...viewer.facts, times: viewer.facts.times.length }));
  const key = seen.facts.key;
  seen.opened = await inside(page, async (viewer, key) => {
    viewer.key = null;
    viewer.ready = false;
    const [start, paints] = [performance.now(), viewer.paints];
    viewer.show(key);
    while (!(viewer.ready && viewer.wanted === null && viewer.paints > paints)) await new Promise(requestAnimationFrame);
    return (performance.now() - start) / 1000;
  }, key);

  // every frame once: what is shown is kept no longer
  seen.held = [held()];
  for (let frame = 0; frame < seen.facts.times; frame++) {
    await inside(page, (viewer, frame) => viewer.go(frame), frame);
    await still(page);
    await page.waitForTimeout(50);
  }
  seen.held.push(held());

  // steps: to any frame, and by keys
  seen.steps = [];
  for (const frame of job.frames) {
    await inside(page, (viewer, frame) => viewer.go(frame), frame);
    await still(page);
    seen.steps.push([frame, ...(await read(page))]);
  }
  const stage = () => page.locator(".vsr-compare-stage").first().boundingBox();
  let box = await stage();
  const focused = () => inside(page, (viewer) => viewer.root.contains(document.activeElement));
  await page.evaluate(() => document.activeElement?.blur());
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  seen.hovered = [await focused()];
  await page.mouse.move(box.x + box.width / 2, box.y - 120);
  seen.hovered.push(await focused());
  await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2);
  await inside(page, (viewer) => viewer.go(2));
  await still(page);
  seen.keys = {};
  for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "Shift+ArrowRight", "ArrowDown", "ArrowUp", "End", "Home"]) {
    await press(page, key);
    (seen.keys[key] ??= []).push(...(await read(page)).slice(0, 1));
  }
  // many at once: only the last counts
  await inside(page, (viewer) => { for (let step = 0; step < 25; step++) viewer.step(1); });
  await still(page);
  seen.burst = await read(page);

  // play and pause: what stands still is the frame that the counter names
  await page.keyboard.press("1");
  await page.keyboard.press("Space");
  await page.waitForTimeout(400);
  seen.playing = await inside(page, (viewer) => viewer.playing);
  seen.wipesPlaying = await wipe(page, box);
  await press(page, "Space");
  seen.paused = [await inside(page, (viewer) => viewer.number("after")), ...(await read(page))];
  await page.keyboard.press("1");
  seen.wipes = await wipe(page, box);

  // modes, zoom, pan, parts in full size
  const mean = () => inside(page, async (viewer) => {
    viewer.paint();
    const { width, height } = viewer.canvas;
    const { data } = viewer.canvas.getContext("2d").getImageData(0, height / 3, width, height / 4);
    return data.reduce((sum, value, at) => sum + (at % 4 === 3 ? 0 : value), 0) / ((data.length / 4) * 3);
  });
  seen.means = {};
  for (const [number, mode] of ["split", "side", "difference", "blink"].entries()) {
    await page.keyboard.press(String(number + 1));
    await page.waitForTimeout(200);
    seen.means[mode] = await mean();
    await shot(mode);
  }
  await page.keyboard.press("1");
  await page.mouse.move(box.x + box.width * 0.25, box.y + box.height * 0.4);
  await page.waitForTimeout(300);
  const share = (viewer) => {
    const [left, top, width, height] = viewer.picture(viewer.field());
    return [(viewer.canvas.width * 0.25 - left) / width, (viewer.canvas.height * 0.4 - top) / height];
  };
  const graph = await page.evaluate(() => window.app.canvas.ds.scale);
  seen.pointed = [await inside(page, share)];
  const until = async (holds, seconds) => { // a busy machine answers late
    for (let tries = 10 * seconds; tries > 0 && !(await inside(page, holds)); tries--) await page.waitForTimeout(100);
  };
  for (let turn = 0; turn < 8; turn++) await page.mouse.wheel(0, -100);
  await until((viewer) => viewer.view.zoom > 3, 5);
  await page.waitForTimeout(300);
  seen.pointed.push(await inside(page, share));
  seen.zoom = await inside(page, (viewer) => viewer.view.zoom);
  seen.graphStays = graph === (await page.evaluate(() => window.app.canvas.ds.scale));
  await page.waitForTimeout(1500);
  await until((viewer) => viewer.details.after?.index === viewer.index, 10);
  seen.details = await inside(page, (viewer) => Object.fromEntries(Object.entries(viewer.details).map(
    ([side, { index, bitmap }]) => [side, [index === viewer.index, bitmap.width, bitmap.height]])));
  await shot("zoomed");
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.5, box.y + box.height * 0.6, { steps: 4 });
  await page.mouse.up();
  await page.waitForTimeout(500);
  seen.pointed.push(await inside(page, (viewer) => {
    const [left, top, width, height] = viewer.picture(viewer.field());
    return [(viewer.canvas.width * 0.5 - left) / width, (viewer.canvas.height * 0.6 - top) / height];
  }));
  await page.keyboard.press("0");
  seen.fitted = await inside(page, (viewer) => viewer.view.zoom);
  seen.blankAfter = null;

  // undo, copy and paste, remove
  const kept = () => page.evaluate(() => window.app.graph._nodes.filter((node) => node.type === "VSRCompareVideo").map(
    (node) => [node.compareVideo.key, !!node.compareVideo.ready, node.compareVideo.note.textContent]));
  const canvas = () => page.evaluate(() => { document.activeElement?.blur(); window.app.canvas.canvas.focus(); });
  await page.evaluate(() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
    window.app.graph._nodes.find((node) => node.type === "VSRCompareVideo").widgets[0].value = 12;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
  });
  await canvas();
  await page.keyboard.press("Control+z");
  await page.waitForTimeout(1000);
  await ready(page);
  seen.undone = { value: await page.evaluate(() =>
    window.app.graph._nodes.find((node) => node.type === "VSRCompareVideo").widgets[0].value), shown: await kept() };
  await canvas();
  await page.evaluate(() => {
    const node = window.app.graph._nodes.find((each) => each.type === "VSRCompareVideo");
    window.app.canvas.deselectAll();
    window.app.canvas.select(node);
  });
  await page.keyboard.press("Control+c");
  await page.keyboard.press("Control+v");
  await page.waitForTimeout(1000);
  seen.pasted = await kept();
  seen.stored = await page.evaluate(() => window.app.graph.serialize().nodes.filter(
    (node) => node.type === "VSRCompareVideo").map((node) => node.widgets_values));
  await page.reload({ waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => window.app?.graph?._nodes.some((node) => node.type === "VSRCompareVideo"));
  await ready(page);
  seen.reloaded = await kept();
  await page.evaluate(() => {
    for (const node of window.app.graph._nodes.filter((each) => each.type === "VSRCompareVideo")) window.app.graph.remove(node);
  });
  await page.waitForTimeout(300);
  seen.left = await page.evaluate(() => document.querySelectorAll(".vsr-compare").length);
  return seen;
}

async function main() {
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  const settings = { "Comfy.VueNodes.Enabled": job.modern, "Comfy.TutorialCompleted": true };
  await fetch(`${job.url}/settings`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(settings) });
  const server = await chromium.launchServer({ executablePath: process.env.CHROMIUM, args: FLAGS });
  const browser = await chromium.connect(server.wsEndpoint());
  const held = () => memory(server.process().pid).renderer;
  const log = [];
  let page;
  try {
    page = await openEditor(browser, job.url, log);
    await page.waitForTimeout(2000); // the editor opens its first graph when it gets to it
    await closeDialogs(page);
    const shot = (name) => job.shots &&
      page.screenshot({ path: path.join(job.shots, `${job.modern ? "modern" : "classic"}-${name}.png`) });
    const seen = await work(page, job, shot, held).catch(async (error) => {
      await shot("failed");
      throw error;
    });
    process.stdout.write(JSON.stringify({ seen, console: log }));
  } finally {
    await server.close();
    await fetch(`${job.url}/settings`, { method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ "Comfy.VueNodes.Enabled": false }) });
  }
}

main().catch((error) => { console.error(error); process.exit(1); });
