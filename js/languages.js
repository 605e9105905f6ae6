// What the editor shows in English whatever its language: tooltips below a choice, and the choices themselves.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let choices = {}; // what they are called, by their values

/** The texts of the editor's language, or of the one without its country; none in English. */
async function translations() {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") || navigator.language;
  const base = chosen.split("-")[0];
  if (base === "en") return {};
  const all = await (await api.fetchApi("/i18n")).json();
  return all[chosen] || all[base] || {};
}

/** Let a dial show its choices in the editor's language; graphs keep the values. */
function named(widget) {
  if (widget?.type !== "combo" || !widget.options || widget.options.getOptionLabel) return widget;
  widget.options.getOptionLabel = (value) => choices[value] ?? value ?? "";
  return widget;
}

function translate(inputs, known, prefix = "") {
  for (const [name, [, facts]] of Object.values(inputs).flatMap((group) => Object.entries(group))) {
    const text = known[`${prefix}${name}`.replaceAll(".", "_")]?.tooltip;
    if (prefix && facts && text) facts.tooltip = text;
    for (const { inputs: below } of facts?.options || []) if (below) translate(below, known, `${prefix}${name}.`);
  }
}

app.registerExtension({
  name: "cascadevsr.Languages",
  async addCustomNodeDefs(defs) {
    const { nodeDefs = {}, cascadevsrChoices = {} } = await translations();
    choices = cascadevsrChoices;
    for (const [name, { inputs }] of Object.entries(nodeDefs)) {
      if (inputs && name.startsWith("VSR") && defs[name]?.input) translate(defs[name].input, inputs);
    }
  },
  beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith("VSR") || !Object.keys(choices).length) return;
    const { addWidget } = nodeType.prototype;
    nodeType.prototype.addWidget = function (...values) { // those that appear below a choice come later
      return named(addWidget.apply(this, values));
    };
  },
});
