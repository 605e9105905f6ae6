// Tooltips of what appears below a choice: the editor shows the schema's own, whatever its language.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** The texts of the editor's language, or of the one without its country; none in English. */
async function translations() {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") || navigator.language;
  const base = chosen.split("-")[0];
  if (base === "en") return {};
  const all = await (await api.fetchApi("/i18n")).json();
  return (all[chosen] || all[base])?.nodeDefs || {};
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
    for (const [name, { inputs }] of Object.entries(await translations())) {
      if (inputs && name.startsWith("VSR") && defs[name]?.input) translate(defs[name].input, inputs);
    }
  },
});
