"use strict";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function table(name, rows) {
  const lines = rows.map(([head, ...cells]) => make("tr", {}, make("th", { scope: "row" }, make("code", { textContent: head })),
    ...cells.map((text) => make("td", { textContent: text }))));
  return rows.length ? [make("table", {}, make("caption", { className: "hint", textContent: name }), make("tbody", {}, ...lines))] : [];
}

/** What a value may be, in words. */
function kind(schema) {
  const parts = [schema.enum ? schema.enum.join(", ") : [schema.type].flat().join(" or ")];
  if (schema.minimum !== undefined) parts.push(`${schema.minimum} to ${schema.maximum ?? "…"}`);
  if (schema.default !== undefined) parts.push(`default ${schema.default}`);
  return parts.join("; ");
}

function example(verb, path, operation) {
  const address = new URL(path.replace("{number}", "0"), location.origin).href;
  const query = operation.parameters.some((one) => one.name === "format") ? "?format=json" : "";
  return verb === "get" ? `curl '${address}${query}'` : `curl --data-binary @street.jpg '${address}${query}'`;
}

function section(path, verb, operation) {
  const given = operation.parameters.map((one) => [one.name, kind(one.schema), one.description]);
  const answers = Object.entries(operation.responses).map(([status, { description, content }]) =>
    [status, Object.keys(content ?? {}).join(", "), description]);
  const fields = Object.entries(operation.responses[200].content["application/json"]?.schema.properties ?? {})
    .map(([name, schema]) => [name, kind(schema), schema.description ?? ""]);
  const head = make("h2", {}, make("span", { className: "verb", textContent: verb.toUpperCase() }), make("code", { textContent: path }));
  const body = operation.requestBody ? [make("p", { className: "hint", textContent: `Body: ${operation.requestBody.description}` })] : [];
  return make("section", { className: "card" }, head, make("p", { textContent: operation.summary }), ...body,
    make("pre", { tabIndex: 0, textContent: example(verb, path, operation) }), ...table("Parameters", given), ...table("Answers", answers), ...table("JSON", fields));
}

fetch("/openapi.json").then((answer) => answer.json()).then((api) => {
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, operation] of Object.entries(verbs)) document.getElementById("paths").append(section(path, verb, operation));
  }
}).catch(() => {
  const error = document.getElementById("error");
  error.textContent = "the server does not answer; is it still running?";
  error.hidden = false;
});
