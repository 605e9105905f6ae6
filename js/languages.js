// The editor's language for what the editor itself leaves in English: tooltips below a choice, and our own words.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts; // of locales/: {nodeDefs, cascadevsr}

function language() {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") || navigator.language;
  return [chosen, chosen.split("-")[0]]; // as the editor: the language where there is none of the country
}

/** The texts of the editor's language; none in English. */
export async function translations() {
  if (!texts) {
    const [whole, base] = language();
    const all = base === "en" ? {} : await (await api.fetchApi("/i18n")).json();
    texts = all[whole] || all[base] || {};
  }
  return texts;
}

/** One of our own words in the editor's language. */
export function say(text) {
  return texts?.cascadevsr?.[text] || text;
}

// What appears below a choice has the schema's own tooltip, whatever the editor's language.
function translate(inputs, known, prefix = "") {
  for (const [name, [, facts]] of Object.values(inputs).flatMap((group) => Object.entries(group))) {
    const found = known[`${prefix}${name}`.replaceAll(".", "_")];
    if (prefix && found?.tooltip) facts.tooltip = found.tooltip;
    for (const { inputs: below } of facts?.options || []) if (below) translate(below, known, `${prefix}${name}.`);
  }
}

app.registerExtension({
  name: "cascadevsr.Languages",
  async addCustomNodeDefs(defs) {
    const { nodeDefs = {} } = await translations();
    for (const [name, { inputs }] of Object.entries(nodeDefs)) {
      if (inputs && name.startsWith("VSR") && defs[name]?.input) translate(defs[name].input, inputs);
    }
  },
});
