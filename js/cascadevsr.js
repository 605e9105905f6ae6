// Shows the text of Compare & Measure, VSR Plan, Load Film and Save Film on the node itself.
import { app } from "../../scripts/app.js";

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
  name: "CascadeVSR.MeasureTable",
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
