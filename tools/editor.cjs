// Drives the real ComfyUI editor in a headless Chromium: `node editor.cjs < job.json > report.json`.
//
// A job is {url, steps: [{do: NAME, ...}], language?, screenshots?: FOLDER for steps that fail}; the report is
// {results: [{value} or {error}, one per step], console: [{type, text, url}]}. Needs $CHROMIUM, and playwright-core on $NODE_PATH.
"use strict";

const fs = require("fs");
const path = require("path");
const { chromium } = require("playwright-core");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"];
const PATIENCE = 240000; // ms for any wait: the machine may be busy with other work
const VIEW = { width: 1680, height: 1000 };

/** Open the editor in a browser; nothing but this machine can be reached from the page. */
async function openEditor(browser, url, log, language = "en") {
  const page = await (await browser.newContext({ viewport: VIEW })).newPage();
  page.setDefaultTimeout(PATIENCE);
  await page.route("**/*", (route) =>
    new URL(route.request().url()).hostname === "127.0.0.1" ? route.continue() : route.abort());
  page.on("console", (message) =>
    log.push({ type: message.type(), text: message.text(), url: message.location().url || "" }));
  page.on("pageerror", (error) =>
    log.push({ type: "error", text: String(error.stack || error), url: (error.stack || "") }));
  // Without this the editor greets a new user with the template browser, whenever it gets to it.
  await page.request.post(`${url}/settings`, { data: { "Comfy.TutorialCompleted": true, "Comfy.Minimap.Visible": false,
    "Comfy.Locale": language } });
  await page.goto(url, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => window.app?.extensionManager && window.app.graph);
  await page.waitForFunction(
    () => Object.keys(window.LiteGraph?.registered_node_types || {}).length > 100);
  return page;
}

async function closeDialogs(page) {
  for (let i = 0; i < 4 && (await page.locator('[role="dialog"]').count()); i++) {
    await page.keyboard.press("Escape");
    await page.waitForTimeout(300);
  }
}

const proc = (pid, name) => { try { return fs.readFileSync(`/proc/${pid}/${name}`, "utf8"); } catch { return ""; } };

/** Memory of a browser by kind of process (Linux), in MiB: PSS, own pages and its share of common ones, and shared memory. */
function memory(root) {
  const parents = Object.fromEntries(fs.readdirSync("/proc").filter(Number).map((pid) =>
    [pid, proc(pid, "stat").split(") ").at(-1).split(" ")[1]]));
  const below = (pid) => Object.keys(parents).filter((each) => parents[each] === String(pid)).flatMap((each) => [each, ...below(each)]);
  const found = {};
  for (const pid of [root, ...below(root)]) {
    const kind = /--type=([\w-]+)/.exec(proc(pid, "cmdline").replaceAll("\0", " "))?.[1] ?? "browser";
    const rollup = proc(pid, "smaps_rollup");
    const size = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(rollup)?.[1] ?? 0) / 1024;
    const { pss, shared } = found[kind] ?? { pss: 0, shared: 0 };
    found[kind] = { pss: Math.round(pss + size("Pss")), shared: Math.round(shared + size("Pss_Shmem")) };
  }
  return found;
}

/** What the open graph is made of: nodes, the ones no type is known for, pairs that lie over each other. */
function describeGraph() {
  const nodes = window.app.graph._nodes.map((node) => {
    const [x, y, width, height] = node.getBounding();
    return { id: node.id, type: node.type, title: node.title, box: [x, y, x + width, y + height],
      known: node.type in window.LiteGraph.registered_node_types };
  });
  const over = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const overlaps = nodes.flatMap((a, i) =>
    nodes.slice(i + 1).filter((b) => over(a.box, b.box)).map((b) => [a.title, b.title]));
  return { nodes, overlaps, missing: nodes.filter((node) => !node.known).map((node) => node.type) };
}

/** The places of all nodes as they are drawn, in px of the graph: by the canvas, or by Nodes 2.0 as elements. */
function placesNow() {
  const { ds, canvas } = window.app.canvas;
  const area = canvas.getBoundingClientRect();
  return window.app.graph._nodes.map((node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    let [x, y, width, height] = node.getBounding();
    if (element) {
      const box = element.getBoundingClientRect();
      [x, y] = [(box.x - area.x) / ds.scale - ds.offset[0], (box.y - area.y) / ds.scale - ds.offset[1]];
      [width, height] = [box.width / ds.scale, box.height / ds.scale];
    }
    const text = [...(element || node.widgets?.[0]?.element || document.body).querySelectorAll?.("*") || []];
    // only what clips its text hides any; the raw text waits in a field below the drawn one
    const clips = [element || node.widgets?.[0]?.element, ...text].filter((each) => each && each.clientHeight
      && each.tagName !== "TEXTAREA" && getComputedStyle(each).overflowY !== "visible");
    const hidden = node.type === "MarkdownNote"
      ? Math.max(0, ...clips.map((each) => each.scrollHeight - each.clientHeight)) : 0;
    return { id: node.id, title: node.title, type: node.type, drawn: element ? "element" : "canvas", hidden, size: [...node.size],
      box: [x, y, x + width, y + height].map(Math.round) };
  });
}

function overlapsOf(places) {
  const over = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  return places.flatMap((a, i) =>
    places.slice(i + 1).filter((b) => over(a.box, b.box)).map((b) => `${a.title} / ${b.title}`));
}

/** The API form of the open graph, without the preview that Load Video shows once a file is there: no setting. */
async function promptOf() {
  const { output } = await window.app.graphToPrompt();
  for (const node of Object.values(output)) delete node.inputs["video-preview"];
  return output;
}

const STEPS = {
  /** The API form that the editor itself makes of an editor file. */
  async derive(page, { graph }) {
    await page.evaluate((data) => window.app.loadGraphData(data), graph);
    return page.evaluate(promptOf);
  },

  /** The API form that the editor makes of an API file that it has opened. */
  async reopen(page, { prompt }) {
    await page.evaluate((data) => window.app.loadApiJson(data, "reopened"), prompt);
    return page.evaluate(promptOf);
  },

  /** The values of a new node's widgets, by name: as it was added, with `values` set, saved and loaded again. */
  async fresh(page, { type, values }) {
    return page.evaluate(([type, values]) => {
      const { app, LiteGraph } = window;
      const node = LiteGraph.createNode(type);
      app.graph.add(node); // the graph is not cleared: the editor keeps values by the ids of nodes that are gone
      const read = (each) => Object.fromEntries(each.widgets.map((widget) => [widget.name, widget.value]));
      const added = read(node);
      for (const [name, value] of Object.entries(values)) node.widgets.find((each) => each.name === name).value = value;
      const changed = read(node);
      app.graph.configure(JSON.parse(JSON.stringify(app.graph.serialize())));
      return { added, changed, loaded: read(app.graph.getNodeById(node.id)) };
    }, [type, values]);
  },

  /** What the nodes of these types, new, show as the names of their inputs, dials and outputs, by type. */
  async labels(page, { types }) {
    return page.evaluate((types) => Object.fromEntries(types.map((type) => {
      const { app, LiteGraph } = window;
      const node = LiteGraph.createNode(type);
      app.graph.add(node);
      const shown = (each) => each.label || each.localized_name || each.name;
      const choices = (node.widgets || []).filter((each) => each.type === "combo" && each.name in node.constructor.nodeData.inputs
        && node.constructor.nodeData.inputs[each.name].type.includes("DYNAMICCOMBO"));
      const found = [node.inputs, node.widgets, node.outputs].flatMap((each) => (each || []).map(shown));
      for (const widget of choices) {
        for (const choice of widget.options.values) {
          widget.value = choice;
          found.push(...[node.inputs, node.widgets].flatMap((each) => each.map(shown)));
        }
      }
      const seed = node.widgets?.find((each) => each.name === "seed")?.linkedWidgets?.[0].value;
      app.graph.remove(node);
      return [type, { labels: [...new Set(found)], seed }];
    })), types);
  },

  /** How a template looks in a window of `size`, by Nodes 2.0 or the canvas, and where its nodes lie while and after it
   *  runs with `values` ({"Title.widget": value}) set; `seconds` 0: it is not run. */
  async look(page, { name, size, vue, values, seconds, picture }) {
    await page.setViewportSize({ width: size[0], height: size[1] });
    await page.evaluate((vue) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue), vue);
    await STEPS.open(page, { name });
    const shoot = async (when) => picture && page.screenshot({ path: `${picture}-${when}.png` });
    const fitted = async () => {
      await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
      await page.waitForTimeout(1500);
      return page.evaluate(() => {
        window.app.canvas.draw(true, true);
        return { scale: window.app.canvas.ds.scale, drawn: !window.app.canvas.low_quality };
      });
    };
    const found = await fitted();
    found.before = await page.evaluate(placesNow);
    found.overlaps = overlapsOf(found.before);
    await shoot("before");
    if (!seconds) return found;
    await page.evaluate((values) => {
      for (const [path, value] of Object.entries(values)) {
        const [title, name] = [path.slice(0, path.indexOf(".")), path.slice(path.indexOf(".") + 1)];
        for (const node of window.app.graph._nodes.filter((each) => each.title === title || each.type === title)) {
          const widget = node.widgets.find((each) => each.name === name);
          if (widget) widget.value = value;
        }
      }
    }, values || {});
    const running = STEPS.run(page, { seconds });
    const meanwhile = new Set();
    let over = false;
    running.then(() => { over = true; }, () => { over = true; });
    while (!over) {
      for (const pair of overlapsOf(await page.evaluate(placesNow))) meanwhile.add(pair);
      await page.waitForTimeout(250);
    }
    found.status = await running;
    await page.waitForTimeout(2500); // previews are fetched, and nodes grow
    found.after = await page.evaluate(placesNow);
    found.failed = await page.getByText("Error loading video").count();
    found.overlaps = [...new Set([...found.overlaps, ...meanwhile, ...overlapsOf(found.after)])];
    found.fitted = await fitted(); // nodes with results are larger
    await shoot("after");
    return found;
  },

  /** What the editor calls a new node of a type and its parts, and the tooltips of its dials, those below choices too. */
  async texts(page, { type }) {
    return page.evaluate((type) => {
      const node = window.LiteGraph.createNode(type);
      window.app.graph.add(node);
      const shown = (each) => each.label || each.localized_name || each.name;
      const found = {
        title: node.title, inputs: node.inputs.map(shown), outputs: node.outputs.map(shown),
        widgets: Object.fromEntries((node.widgets || []).map((each) => [each.name, [shown(each), each.tooltip]])),
        choices: Object.fromEntries((node.widgets || []).filter((each) => each.type === "combo").flatMap((each) =>
          [each.options.values].flat().filter((value) => typeof value === "string").map(
            (value) => [value, each.options.getOptionLabel?.(value) ?? value]))),
      };
      window.app.graph.remove(node);
      return found;
    }, type);
  },

  /** The templates listed for a pack, each with the width its thumbnail was drawn at (0: none came). */
  async templates(page, { names }) {
    await closeDialogs(page);
    await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.BrowseTemplates"));
    await page.locator('[role="dialog"]').first().waitFor();
    const found = {};
    for (const name of names) {
      const card = page.locator(`[data-testid="template-workflow-${name}"]`).first();
      const search = page.locator('[role="dialog"] input').first();
      await search.fill(name.split(" - ")[0].replaceAll(/[()]/g, "")); // what a user would type
      await card.waitFor();
      const image = card.locator("img").first();
      await image.waitFor();
      await image.evaluate((img) => img.complete || new Promise((done) => { img.onload = img.onerror = done; }));
      found[name] = { width: await image.evaluate((img) => img.naturalWidth), source: await image.getAttribute("src") };
    }
    return found;
  },

  /** Open a template as a user does, by its card, and describe the graph. */
  async open(page, { name }) {
    await STEPS.templates(page, { names: [name] });
    await page.locator(`[data-testid="template-workflow-${name}"]`).first().click();
    await page.waitForFunction(() => window.app.graph._nodes.some((node) => node.type.startsWith("VSR")));
    await closeDialogs(page);
    await page.waitForTimeout(500);
    return { ...(await page.evaluate(describeGraph)), prompt: await page.evaluate(promptOf) };
  },

  /** Open a template by a link, as a page or a mail gives it, and list its nodes. */
  async link(page, { name, pack }) {
    await page.goto(`${page.url().split("?")[0].split("#")[0]}?template=${name}&source=${pack}`, { waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => window.app?.graph?._nodes.some((node) => node.type.startsWith("VSR")));
    await page.waitForTimeout(500);
    return (await page.evaluate(describeGraph)).nodes;
  },

  /** Click a node and its info button, and return the text of the help panel. */
  async help(page, { title, expect }) {
    const spot = await page.evaluate((wanted) => {
      const node = window.app.graph._nodes.find((each) => each.title === wanted);
      window.app.canvas.centerOnNode(node);
      window.app.canvas.draw(true, true);
      const { scale, offset } = window.app.canvas.ds;
      const area = window.app.canvas.canvas.getBoundingClientRect();
      return [area.x + (node.pos[0] + 60 + offset[0]) * scale, area.y + (node.pos[1] - 12 + offset[1]) * scale];
    }, title);
    await page.mouse.click(...spot);
    const info = page.locator('[data-testid="info-button"]').first();
    await info.waitFor();
    await info.click();
    const panel = page.getByText(expect).first();
    await panel.waitFor();
    return panel.evaluate((element) => (element.closest("[class*=panel]") || element.parentElement).innerText);
  },

  /** Queue an API-format prompt through the editor, and return the text that a node then shows on itself. */
  async show(page, { prompt, type }) {
    await page.evaluate((data) => window.app.loadApiJson(data, "measure"), prompt);
    const status = await STEPS.run(page, { seconds: 120 });
    const shown = await page.evaluate((wanted) => {
      const node = window.app.graph._nodes.find((each) => each.type === wanted);
      return { text: (node.widgets || []).map((widget) => widget.element?.textContent || "").join("\n"),
        stored: node.serialize().widgets_values || [] };
    }, type);
    return { status: status.status_str, ...shown };
  },

  /** A new node while it works and shows a live picture, and when it is done: its height and the picture's, in px. */
  async live(page, { type, vue }) {
    await page.evaluate((vue) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue), vue);
    const seen = async () => {
      await page.waitForTimeout(2000);
      return page.evaluate((id) => {
        window.app.canvas.draw(true, true);
        const node = window.app.graph.getNodeById(id);
        const picture = document.querySelector(`[data-node-id="${node.id}"] img`);
        const widget = (node.widgets || []).find((each) => each.name === "$$canvas-image-preview");
        return { height: node.size[1], picture: picture?.naturalHeight ?? widget?.node.imgs?.[0]?.naturalHeight ?? 0 };
      }, id);
    };
    const id = await page.evaluate((type) => {
      const node = window.LiteGraph.createNode(type);
      window.app.graph.add(node); // the graph is not cleared: the editor keeps values by the ids of nodes that are gone
      node.pos = [300, 100];
      window.app.canvas.ds.reset();
      return node.id;
    }, type);
    const found = [await seen()];
    const show = (ends) => page.evaluate(async ([id, ends]) => {
      const canvas = new OffscreenCanvas(160, 90);
      canvas.getContext("2d").fillRect(0, 0, 160, 90);
      const blob = await canvas.convertToBlob({ type: "image/jpeg" });
      window.app.api.dispatchCustomEvent("executing", `${id}`);
      window.app.api.dispatchCustomEvent("b_preview_with_metadata",
        { blob, nodeId: `${id}`, displayNodeId: `${id}`, parentNodeId: `${id}`, realNodeId: `${id}`, promptId: "1", jobId: "1" });
      if (!ends) return;
      window.app.canvas.draw(true, true); // begins to load it
      window.app.api.dispatchCustomEvent("executing", null);
    }, [id, ends]);
    await show(false);
    found.push(await seen());
    await page.evaluate(() => window.app.api.dispatchCustomEvent("executing", null));
    found.push(await seen());
    await show(true); // the node is done before its picture is loaded
    found.push(await seen());
    await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", false));
    return found;
  },

  /** What the editor makes of the pack's blueprints: messages it shows, the ones it lists, and each as a node. */
  async blueprints(page, { pack }) {
    await page.waitForTimeout(2000); // they are fetched after the editor is ready
    const messages = await page.locator(".p-toast-message").allInnerTexts();
    const found = await page.evaluate(async (pack) => {
      const served = Object.values(await (await fetch("/global_subgraphs")).json());
      const names = served.filter((each) => each.info.node_pack.endsWith(pack)).map((each) => each.name);
      const root = document.querySelector("#vue-app") || document.querySelector("[data-v-app]");
      const store = root.__vue_app__.config.globalProperties.$pinia._s.get("subgraph");
      const nodes = {};
      for (const listed of store.subgraphBlueprints.filter((each) => names.includes(each.display_name))) {
        const { nodes: outer, definitions } = JSON.parse(JSON.stringify(store.getBlueprint(listed.name)));
        window.app.graph.clear();
        window.app.canvas._deserializeItems(
          { nodes: outer, subgraphs: definitions.subgraphs, links: [], groups: [], reroutes: [] }, { position: [0, 0] });
        const [node] = window.app.graph._nodes;
        nodes[listed.display_name] = {
          category: listed.category, inputs: node.inputs.filter((each) => !each.widget).map((each) => each.name),
          outputs: node.outputs.map((each) => each.name),
          widgets: Object.fromEntries(node.widgets.map((each) => [each.name, each.value])),
          labels: node.widgets.map((each) => each.label || each.name),
          missing: node.subgraph._nodes.filter((each) => !(each.type in window.LiteGraph.registered_node_types)).length,
        };
      }
      return { served: names, nodes };
    }, pack);
    return { messages, ...found };
  },

  /** Press Run and wait until the queue is empty again; returns what the host says about the prompt. */
  async run(page, { seconds }) {
    const before = await page.evaluate(async () => Object.keys(await (await fetch("/history")).json()).length);
    await page.getByTestId("queue-button").or(page.getByRole("button", { name: "Run", exact: true })).first().click();
    return page.evaluate(async ([limit, before]) => {
      const end = Date.now() + 1000 * limit;
      while (Date.now() < end) {
        await new Promise((done) => setTimeout(done, 500));
        const history = Object.values(await (await fetch("/history")).json());
        const queue = await (await fetch("/queue")).json();
        if (history.length > before && !queue.queue_running.length && !queue.queue_pending.length) {
          const status = history.at(-1).status;
          return { status_str: status.status_str, error: status.messages.find(([kind]) => kind.includes("error")) };
        }
      }
      return { status_str: "timeout" };
    }, [seconds, before]);
  },
};

async function main() {
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  const report = { results: [], console: [] };
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  try {
    const page = await openEditor(browser, job.url, report.console, job.language);
    await closeDialogs(page);
    for (const [index, step] of job.steps.entries()) {
      try {
        report.results.push({ value: await STEPS[step.do](page, step) });
      } catch (error) {
        report.results.push({ error: `${step.do}: ${error.message}` });
        if (job.screenshots) await page.screenshot({ path: path.join(job.screenshots, `${index}-${step.do}.png`) });
      }
    }
  } finally {
    await browser.close();
  }
  process.stdout.write(JSON.stringify(report));
}

module.exports = { FLAGS, closeDialogs, memory, openEditor };
if (require.main === module) main().catch((error) => { console.error(error); process.exit(1); });
