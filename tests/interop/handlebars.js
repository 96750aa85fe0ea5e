// Records what handlebars.js makes of the templates in src/prompts/template/recorded.json, with the options that dotprompt uses.
// `npm install handlebars@4.7.10` in some folder, then: NODE_PATH=FOLDER/node_modules node tests/interop/handlebars.js
const handlebars = require("handlebars");
const fs = require("fs");
const path = require("path");

const file = path.join(__dirname, "../../src/prompts/template/recorded.json");
const recorded = JSON.parse(fs.readFileSync(file, "utf8"));
const knownHelpers = { json: true, ifEquals: true, unlessEquals: true, raw: true };

function render(template) {
  const own = handlebars.create();
  own.registerHelper("json", (value, options) => new own.SafeString(JSON.stringify(value, null, options.hash.indent || 0)));
  own.registerHelper("ifEquals", function (a, b, options) { return a === b ? options.fn(this) : options.inverse(this); });
  own.registerHelper("unlessEquals", function (a, b, options) { return a !== b ? options.fn(this) : options.inverse(this); });
  own.registerHelper("raw", function (options) { return options.fn(this); });
  own.registerPartial(recorded.partials);
  try {
    return own.compile(template, { knownHelpers, knownHelpersOnly: true, noEscape: true })(recorded.data, { data: recorded.context });
  } catch {
    return null;
  }
}

const ascii = (value) => JSON.stringify(value).replace(/[^\x20-\x7e]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const { cases, ...head } = recorded;
const lines = cases.map(([template]) => ascii([template, render(template)]));
fs.writeFileSync(file, `${ascii(head).slice(0, -1)},\n"cases":[\n${lines.join(",\n")}\n]}\n`);
const changed = cases.filter(([template, output]) => render(template) !== output).length;
console.log(`${cases.length} recorded with handlebars.js ${handlebars.VERSION}, ${changed} changed`);
