"use strict";

const SIDE = 1600; // of what is shown
const KINDS = ["image", "truth", "teacher", "baseline", "student", "differs"];
const $ = (id) => document.getElementById(id);
const state = { models: [], samples: null, limits: null, image: null, layers: new Map(), hidden: new Set(), job: null, name: "" };

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

/** Ask the server; a full queue is asked again, an error is its line. */
async function ask(address, options = {}, tries = 5) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is it still running?");
  }
  if (answer.status === 503 && tries > 1) {
    await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("Retry-After") ?? 1)));
    return ask(address, options, tries - 1);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error ?? `the server answered ${answer.status}`);
}

async function start() {
  const [told, samples] = await Promise.all(["/models", "/samples"].map(async (from) => (await ask(from)).json()));
  Object.assign(state, { models: told.models, limits: told.limits, samples });
  Object.assign(state, unite([...told.models, samples]));
  const roles = new Intl.ListFormat("en").format(told.models.map((model) => model.role));
  $("title").textContent = `What ${roles} see${told.models.length > 1 ? "" : "s"}`;
  document.title = `${told.models[0].name} · segdistill`;
  $("version").textContent = `· version ${told.version}`;
  $("models").append(...told.models.map((model) => make("li", {}, make("b", { textContent: model.role }),
    ` ${model.name}: ${model.params ? `${(model.params / 1e6).toPrecision(3)} M parameters, ` : ""}${model.classes.length} classes, `,
    model.size ? `sees images at ${model.size.join("×")}` : "sees images at their own size")));
  const options = samples.names.map((name, number) => make("option", { value: number, textContent: name }));
  $("sample").append(make("option", { value: "", textContent: `${samples.split}: choose…` }), ...options);
  $("sampling").hidden = !options.length;
}

/** Show an image: `source` is a file, or a sample's number. */
async function open(source, name) {
  state.job?.abort();
  const job = (state.job = new AbortController()), sampled = typeof source === "number";
  const limit = state.limits.bytes;
  fail("");
  if (!sampled && source.size > limit) {
    return fail(`${name} has ${source.size} bytes, more than the ${limit} that the server takes`);
  }
  if (!sampled) $("sample").value = "";
  const send = sampled ? { signal: job.signal } : { signal: job.signal, method: "POST", body: source };
  try {
    $("status").textContent = `Reading ${name}…`;
    const shown = await ask(sampled ? `/samples/${source}?side=${SIDE}` : `/image?side=${SIDE}`, send);
    const image = await createImageBitmap(await shown.blob());
    if (job.signal.aborted) return;
    Object.assign(state, { image, name, layers: new Map([["image", { label: "image" }]]) });
    await segment(source, sampled, send, job.signal);
    $("status").textContent = `${name}: ${shown.headers.get("X-Image-Size").replace(" ", "×")} pixels`;
  } catch (error) {
    if (error.name === "AbortError") return;
    $("status").textContent = "";
    fail(error.message);
  }
}

async function segment(source, sampled, send, signal) {
  const parts = state.models.map(({ role }) => [role, `/predict?format=rle&model=${role}${sampled ? `&sample=${source}` : ""}`, { ...send, method: "POST" }]);
  if (sampled) parts.unshift(["truth", `/samples/${source}/truth?format=rle`, send]);
  for (const [kind, address, options] of parts) {
    $("status").textContent = `${state.name}: ${kind}…`;
    try {
      const found = await (await ask(address, options)).json();
      if (signal.aborted) return;
      const ids = expand(found, state.places, state.image.width, state.image.height);
      state.layers.set(kind, { label: kind, ids, classes: found.classes, shares: found.shares, ms: found.ms });
    } catch (error) {
      if (signal.aborted) return;
      fail(error.message);
    }
    arrange();
  }
}

/** Fit the controls to the layers that are there, and draw. */
function arrange() {
  const others = ["teacher", "baseline", "truth"].filter((kind) => state.layers.has(kind));
  choose($("against"), others, others[0]);
  $("against").parentElement.hidden = !(others.length && state.layers.has("student"));
  compare();
  const kinds = KINDS.filter((kind) => state.layers.has(kind));
  choose($("left"), kinds, "image");
  choose($("right"), kinds, state.layers.has("student") ? "student" : kinds.at(-1));
  $("work").hidden = false;
  list(KINDS.filter((kind) => state.layers.get(kind)?.shares));
  draw();
}

function choose(field, kinds, preset) {
  const wanted = kinds.includes(field.dataset.chosen) ? field.dataset.chosen : preset;
  field.replaceChildren(...kinds.map((kind) => make("option", { value: kind, textContent: title(kind) })));
  field.value = wanted ?? "";
}

function title(kind) {
  return kind === "differs" ? `student ≠ ${$("against").value}` : kind;
}

/** The map of where the student differs. */
function compare() {
  const own = state.layers.get("student"), other = state.layers.get($("against").value);
  state.layers.delete("differs");
  $("difference").textContent = "";
  if (!own || !other) return;
  const [mine, theirs] = [own, other].map((layer) => new Set(layer.classes));
  const both = own.classes.filter((name) => theirs.has(name));
  const found = differ(own.ids, other.ids, new Set(both.map((name) => state.places.get(name))));
  state.layers.set("differs", { label: "differs", marks: found.marks });
  const share = found.compared ? `${percent(found.different / found.compared)} % of the pixels` : "No pixel can be compared";
  const lines = [found.compared ? `The student differs from the ${other.label} in ${share}` : share];
  if (found.compared < own.ids.length) lines.push(` (${percent(found.compared / own.ids.length)} % are compared)`);
  lines.push(". Orange: different; violet: not compared.");
  if (both.length < own.classes.length || both.length < other.classes.length) {
    lines.push(` They share ${both.length} classes by name`);
    for (const [label, names, there] of [["student", own.classes, theirs], [other.label, other.classes, mine]]) {
      const alone = names.filter((name) => !there.has(name));
      if (alone.length) lines.push(`; only the ${label} has ${alone.join(", ")}`);
    }
    lines.push("; pixels of such a class are not compared.");
  }
  $("difference").textContent = lines.join("");
}

const percent = (share) => (share && share < 0.0005 ? "<0.1" : (100 * share).toFixed(1));

function list(kinds) {
  const head = make("tr", {}, make("th", { scope: "col", textContent: "class" }),
    ...kinds.map((kind) => make("th", { scope: "col", textContent: kind })));
  $("legend").tHead.replaceChildren(head);
  const focus = document.activeElement?.dataset.class;
  $("legend").tBodies[0].replaceChildren(...state.classes.map(({ name, colour }, id) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.setProperty("--colour", `rgb(${colour.join()})`);
    const button = make("button", { type: "button" }, swatch, make("span", { textContent: name }));
    button.dataset.class = id;
    button.setAttribute("aria-pressed", !state.hidden.has(id));
    const cells = kinds.map((kind) => state.layers.get(kind).shares[name]);
    return make("tr", {}, make("th", { scope: "row" }, button),
      ...cells.map((share) => make("td", { textContent: share === undefined ? "–" : percent(share) })));
  }));
  if (focus !== undefined) $("legend").querySelector(`[data-class="${CSS.escape(focus)}"]`)?.focus();
}

function draw() {
  const alpha = $("alpha").value / 100, colours = new Uint32Array(NONE + 1);
  state.classes.forEach(({ colour }, id) => { if (!state.hidden.has(id)) colours[id] = word(colour); });
  const marks = [word([18, 22, 28]), word([255, 140, 30]), word([120, 90, 200])];
  const maps = [];
  for (const kind of KINDS) {
    const layer = state.layers.get(kind);
    if (!layer) continue;
    layer.canvas ??= make("canvas", { role: "img" });
    layer.canvas.setAttribute("aria-label", `${title(kind)} of ${state.name}`);
    if (layer.marks) paint(layer.canvas, state.image, layer.marks, marks, 0.8);
    else paint(layer.canvas, state.image, layer.ids, colours, alpha);
    const remark = layer.ms ? `${layer.ms.segment.toFixed(1)} ms` : "";
    const caption = make("figcaption", {}, make("b", { textContent: title(kind) }), make("span", { textContent: remark }));
    maps.push(make("figure", { className: "card" }, layer.canvas, caption));
  }
  $("maps").replaceChildren(...maps);
  show();
}

/** The two layers that the divider parts. */
function show() {
  for (const [side, canvas] of [["left", $("under")], ["right", $("over")]]) {
    const kind = $(side).value, from = state.layers.get(kind).canvas;
    canvas.width = from.width;
    canvas.height = from.height;
    canvas.getContext("2d").drawImage(from, 0, 0);
    canvas.setAttribute("aria-label", `${side}: ${title(kind)}`);
    $(`${side}-tag`).textContent = title(kind);
  }
}

function slide() {
  const at = Number($("divider").value);
  $("view").style.setProperty("--pos", `${at}%`);
  $("divider").setAttribute("aria-valuetext", `${Math.round(at)} % from the left`);
}

function toggle(ids, shown) {
  for (const id of ids) shown ? state.hidden.delete(id) : state.hidden.add(id);
  for (const button of $("legend").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", !state.hidden.has(Number(button.dataset.class)));
  }
  draw();
}

function take(files) {
  const file = files?.[0];
  if (file && state.limits) open(file, file.name || "pasted image");
}

let awaited = 0;
const later = () => { cancelAnimationFrame(awaited); awaited = requestAnimationFrame(draw); };
const every = () => state.classes.keys();
$("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
$("sample").addEventListener("change", ({ target }) => {
  if (target.value !== "") open(Number(target.value), target.selectedOptions[0].textContent);
});
$("divider").addEventListener("input", slide);
$("alpha").addEventListener("input", later);
for (const side of ["left", "right"]) {
  $(side).addEventListener("input", ({ target }) => { target.dataset.chosen = target.value; show(); });
}
$("against").addEventListener("input", ({ target }) => { target.dataset.chosen = target.value; arrange(); });
$("legend").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) toggle([Number(button.dataset.class)], button.getAttribute("aria-pressed") === "false");
});
$("all").addEventListener("click", () => toggle(every(), true));
$("none").addEventListener("click", () => toggle(every(), false));
document.addEventListener("paste", (event) => take(event.clipboardData?.files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
slide();
start().catch((error) => fail(error.message));
