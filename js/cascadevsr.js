// Shows the text of Compare & Measure and of VSR Plan on the node itself.
import { app } from "../../scripts/app.js";

const STYLE =
  "margin:0;padding:6px;overflow:auto;white-space:pre;font:11px/1.4 monospace;user-select:text;" +
  "color:var(--input-text);background:var(--comfy-input-bg);border-radius:4px";
const SIZES = { VSRCompareMeasure: [720, 230], VSRPlan: [640, 560] }; // px; the usual text without scroll bars

function textElement(node, size) {
  let widget = node.widgets?.find((each) => each.name === "measures");
  if (!widget) {
    const element = document.createElement("pre");
    element.style.cssText = STYLE;
    // serialize: false - what is shown is a result, no setting, and belongs into no file and no prompt.
    widget = node.addDOMWidget("measures", "measures", element, { serialize: false, getMinHeight: () => 120 });
    widget.serialize = false;
    node.setSize(node.size.map((side, axis) => Math.max(side, size[axis])));
  }
  return widget.element;
}

app.registerExtension({
  name: "CascadeVSR.MeasureTable",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const size = SIZES[nodeData.name];
    if (!size) return;
    const inherited = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      inherited?.apply(this, arguments);
      if (output?.text) textElement(this, size).textContent = [].concat(output.text).join("\n");
    };
  },
});
