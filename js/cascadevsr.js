// Shows the text of Compare & Measure, VSR Plan, Load Film, Save Film, Upscale Film and Steady Upscaled Video
// on the node itself; drops live pictures of nodes that are done; keeps the sizes of graphs saved by 0.1.0.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const STYLE =
  "margin:0;padding:6px;overflow:auto;font:11px/1.4 monospace;user-select:text;" +
  "color:var(--input-text);background:var(--comfy-input-bg);border-radius:4px;white-space:";
const TABLE = { space: "pre", least: 120 }; // px of height
const LINES = { space: "pre-wrap", least: 60, size: [290, 0] };
const TEXTS = {
  VSRCompareMeasure: { ...TABLE, size: [720, 230] }, // px of the node: the usual text without scroll bars
  VSRPlan: { ...TABLE, size: [640, 560] },
  VSRLoadFilm: LINES,
  VSRSaveFilm: LINES,
  VSRUpscaleFilm: LINES,
  VSRSteadyUpscaledVideo: LINES,
};

function textElement(node, { space, least, size }) {
  let widget = node.widgets?.find((each) => each.name === "measures");
  if (!widget) {
    const element = document.createElement("pre");
    element.style.cssText = STYLE + space;
    // serialize: false - what is shown is a result, no setting, and belongs into no file and no prompt.
    widget = node.addDOMWidget("measures", "measures", element, { serialize: false, getMinHeight: () => least });
    widget.serialize = false;
    node.setSize(node.size.map((side, axis) => Math.max(side, size[axis])));
  }
  return widget.element;
}

app.registerExtension({
  name: "cascadevsr.MeasureTable",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const look = TEXTS[nodeData.name];
    if (!look) return;
    const inherited = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      inherited?.apply(this, arguments);
      if (output?.text) textElement(this, look).textContent = [].concat(output.text).join("\n");
    };
  },
});

// The editor leaves the last live picture of a node where it is when the node is done: below the result or, in Nodes 2.0,
// in its place, where a film then fails to load; and the node stays as tall as the picture made it.
const LIVE = "$$canvas-image-preview";
const LATE = 1000; // ms in which a picture that was still being loaded comes, after its node is done
const previews = () =>
  document.querySelector("#vue-app, [data-v-app]")?.__vue_app__?.config.globalProperties.$pinia?._s.get("nodeOutput");

function nodeAt(executionId) {
  let [graph, node] = [app.rootGraph ?? app.graph, null];
  for (const id of executionId.split(":")) {
    node = graph?.getNodeById(id);
    graph = node?.subgraph;
  }
  return node;
}

function dropLivePicture(node, height) {
  if (!node.graph) return; // it was removed meanwhile
  const place = node.graph === (app.rootGraph ?? app.graph) ? `${node.id}` : `${node.graph.id}:${node.id}`;
  const widget = node.widgets?.find((each) => each.name === LIVE);
  const late = node.imgs?.length && !app.nodeOutputs?.[place]?.images; // none of a result
  if (!app.nodePreviewImages?.[place]?.length && !widget && !late) return;
  previews()?.revokePreviewsByLocatorId?.(place);
  node.preview = node.imgs = undefined;
  if (widget) node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.setSize([node.size[0], Math.max(height, node.computeSize()[1])]);
  app.canvas.setDirty(true, true);
}

app.registerExtension({
  name: "cascadevsr.LivePictures",
  setup() {
    let running = null; // { id, node, height before its work }
    const done = () => {
      if (!running) return;
      const { node, height } = running;
      dropLivePicture(node, height);
      setTimeout(() => running?.node === node || dropLivePicture(node, height), LATE);
    };
    // Before Nodes 2.0 draws what came: it does not try again to load a film.
    api.addEventListener("executed", ({ detail }) => `${detail.display_node ?? detail.node}` === running?.id && done());
    api.addEventListener("executing", ({ detail }) => {
      done();
      const node = detail && nodeAt(`${detail}`);
      running = node?.type?.startsWith("VSR") ? { id: `${detail}`, node, height: node.size[1] } : null;
    });
  },
});

// Version 0.1.0 did not round sides. Graphs of it have no `multiple`: they get 1, while a new node begins with 2.
const ROUNDED = ["VSRCascadeInput", "VSRSDEditDegradation", "VSRDegradeVideo"];

function withMultiple(prompt) {
  const whole = (node) =>
    ROUNDED.includes(node.class_type) ? { ...node, inputs: { multiple: 1, ...node.inputs } } : node;
  return Object.fromEntries(Object.entries(prompt).map(([id, node]) => [id, whole(node)]));
}

app.registerExtension({
  name: "cascadevsr.SavedSizes",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!ROUNDED.includes(nodeData.name)) return;
    const inherited = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function (saved) {
      inherited?.apply(this, arguments);
      // Values are saved by position, `multiple` last (by now the widgets below the choice of a size are those that were
      // saved), and by newer editors by name as well.
      const widgets = this.widgets.filter((each) => each.serialize !== false);
      const place = widgets.findIndex((each) => each.name === "multiple");
      const { widgets_values: values, widgets_values_named: named } = saved;
      if (named ? !("multiple" in named) : values && place >= values.length) widgets[place].value = 1;
    };
  },
  setup() {
    const load = app.loadApiJson;
    app.loadApiJson = function (prompt, ...rest) {
      return load.call(this, withMultiple(prompt), ...rest);
    };
  },
});

// The editor labels the sockets that grow with every link by their ids, which hides their names in every language.
app.registerExtension({
  name: "cascadevsr.GrowingSockets",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!["VSRReferenceSet", "VSRSteadyUpscaledVideo"].includes(nodeData.name)) return;
    const inherited = nodeType.prototype.onInputAdded;
    nodeType.prototype.onInputAdded = function (input) {
      inherited?.apply(this, arguments);
      const id = input.name.split(".")[1];
      let label = input.label;
      Object.defineProperty(input, "label", {
        get: () => label,
        set: (text) => (label = text === id ? undefined : text),
        enumerable: true,
        configurable: true,
      });
    };
  },
});

// What appears below a choice loses its label when a graph is opened, and a blueprint calls its dials by labels, or by ids.
app.registerExtension({
  name: "cascadevsr.DialsBelowChoices",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("VSR")) return;
    const inherited = nodeType.prototype.onInputAdded;
    nodeType.prototype.onInputAdded = function (input) {
      inherited?.apply(this, arguments);
      if (input.name.includes(".") && input.localized_name !== input.name) input.label ??= input.localized_name;
    };
  },
});

// Load Film had no `first_seconds` at first: its saved values end with that of the upload button, by position.
app.registerExtension({
  name: "cascadevsr.SavedFilms",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "VSRLoadFilm") return;
    const inherited = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function () {
      inherited?.apply(this, arguments);
      const seconds = this.widgets.find((each) => each.name === "first_seconds");
      if (seconds && typeof seconds.value !== "number") seconds.value = 0;
    };
  },
});
