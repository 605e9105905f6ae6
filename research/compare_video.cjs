// Works Compare Video with large clips and reads what the browser's processes hold: `node compare_video.cjs < job.json`.
//
// A job is {url, modern, prompt, seconds: to wait for the small film}.
"use strict";

const fs = require("fs");
const { FLAGS, closeDialogs, memory, openEditor } = require("../tools/editor.cjs");
const { chromium } = require("playwright-core");

const inside = (page, act, value) => page.evaluate(
  `(${act})(app.graph._nodes.find((node) => node.type === "VSRCompareVideo").compareVideo, ${JSON.stringify(value ?? null)})`);

const settled = (page, timeout) => page.waitForFunction(() => {
  const viewer = window.app.graph?._nodes.find((node) => node.type === "VSRCompareVideo")?.compareVideo;
  return viewer?.ready && viewer.wanted === null && viewer.paints > 0;
}, null, { timeout });

async function wipes(page, box, seconds) {
  const start = Date.now();
  const before = await inside(page, (viewer) => viewer.paints);
  for (let step = 0; Date.now() - start < 1000 * seconds; step++) {
    await page.mouse.move(box.x + box.width * (0.5 + 0.45 * Math.sin(step / 9)), box.y + box.height / 2);
  }
  return Math.round((10000 * ((await inside(page, (viewer) => viewer.paints)) - before)) / (Date.now() - start)) / 10;
}

/** The numbers that are burnt into both pictures, as 12 squares at the top. */
const numbers = (page) => inside(page, (viewer) => {
  const context = viewer.canvas.getContext("2d");
  viewer.paint();
  return ["before", "after"].map((side, index) => {
    const [left, top, width, height] = viewer.place(side, viewer.field(index));
    let number = 0;
    for (let bit = 0; bit < 12; bit++) {
      const [x, y] = [left + (width * (bit + 2.5)) / 16, top + height / 20];
      if (context.getImageData(Math.round(x), Math.round(y), 1, 1).data[1] > 128) number += 2 ** bit;
    }
    return number;
  });
});

async function make(page, job) {
  await page.evaluate(async (prompt) => {
    await window.app.loadApiJson(prompt, "compared");
    await window.app.loadGraphData({ ...window.app.graph.serialize(), id: crypto.randomUUID() });
  }, job.prompt);
  await page.getByTestId("queue-button").or(page.getByRole("button", { name: "Run", exact: true })).first().click();
  await settled(page, 1000 * job.seconds);
  return inside(page, (viewer) => viewer.key);
}

async function work(page, key, held) {
  const found = { memory: {} };
  const note = async (when) => {
    await page.waitForTimeout(1500);
    found.memory[when] = Object.fromEntries(Object.entries(held()).map(([kind, { pss }]) => [kind, pss]));
  };
  await page.evaluate(() => window.app.graph.clear());
  await note("empty graph");
  await page.evaluate(() => {
    const node = window.LiteGraph.createNode("VSRCompareVideo");
    window.app.graph.add(node);
    node.pos = [300, 150];
    window.app.canvas.ds.reset();
  });
  await page.waitForTimeout(1500);
  const start = Date.now();
  await inside(page, (viewer, key) => { viewer.show(key); }, key);
  await settled(page, 60000);
  found.opens = (Date.now() - start) / 1000;
  await note("opened");
  await inside(page, (viewer) => viewer.set({ mode: "side" }));
  found.steps = [];
  for (let step = 0; step < 60; step++) {
    const wanted = (step * 37) % (await inside(page, (viewer) => viewer.facts.times.length));
    await inside(page, (viewer, wanted) => viewer.go(wanted), wanted);
    await settled(page, 20000);
    found.steps.push([wanted, ...(await numbers(page))]);
  }
  await inside(page, (viewer) => viewer.set({ mode: "split" }));
  await note("60 steps");
  const box = await page.locator(".vsr-compare-stage").first().boundingBox();
  found.wipes = await wipes(page, box, 4);
  await inside(page, (viewer) => viewer.toggle());
  found.wipesPlaying = await wipes(page, box, 4);
  await page.waitForTimeout(12000);
  await note("played");
  await inside(page, (viewer) => viewer.toggle());
  await settled(page, 20000);
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  for (let turn = 0; turn < 8; turn++) await page.mouse.wheel(0, -100);
  await page.waitForFunction(() => window.app.graph._nodes[0].compareVideo.details.after, null, { timeout: 180000 });
  await note("zoomed");
  found.zoomed = await inside(page, (viewer) => Object.fromEntries(Object.entries(viewer.details).map(
    ([side, { bitmap, box }]) => [side, { pixels: [bitmap.width, bitmap.height], share: box }])));
  await page.evaluate(() => window.app.graph.remove(window.app.graph._nodes[0]));
  const session = await page.context().newCDPSession(page);
  await session.send("HeapProfiler.collectGarbage");
  await note("removed");
  return found;
}

async function main() {
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  const settings = (modern) => fetch(`${job.url}/settings`, { method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ "Comfy.VueNodes.Enabled": modern, "Comfy.TutorialCompleted": true }) });
  await settings(job.modern);
  const server = await chromium.launchServer({ executablePath: process.env.CHROMIUM, args: FLAGS });
  try {
    const browser = await chromium.connect(server.wsEndpoint());
    const opened = async () => {
      const page = await openEditor(browser, job.url, []);
      await page.waitForTimeout(2500);
      await closeDialogs(page);
      return page;
    };
    const first = await opened();
    const key = await make(first, job);
    await first.context().close(); // the host's Load Video shows films of its own: they are not counted
    process.stdout.write(JSON.stringify(await work(await opened(), key, () => memory(server.process().pid))));
  } finally {
    await server.close();
    await settings(false);
  }
}

main().catch((error) => { console.error(error); process.exit(1); });
