"use strict";
// Layers: maps of classes at the size that is shown, and their pictures. Nothing here touches the page.

const NONE = 65535;

/** The classes of all models by name: what the first one calls a class keeps its place and colour. */
function unite(sources) {
  const classes = [], places = new Map();
  for (const { classes: names, palette } of sources) {
    names.forEach((name, id) => {
      if (places.has(name)) return;
      places.set(name, classes.length);
      classes.push({ name, colour: palette[id] ?? [128, 128, 128] });
    });
  }
  return { classes, places };
}

/** Runs of ids at the image's size → numbers of united classes at the size that is shown. */
function expand({ runs, width, height, classes }, places, wide, high) {
  const full = new Uint8Array(width * height);
  for (let at = 0, place = 0; at < runs.length; at += 2) full.fill(runs[at], place, (place += runs[at + 1]));
  const united = new Uint16Array(256).fill(NONE);
  classes.forEach((name, id) => { united[id] = places.get(name); });
  const columns = Uint32Array.from({ length: wide }, (_, x) => Math.floor(((x + 0.5) * width) / wide));
  const ids = new Uint16Array(wide * high);
  for (let y = 0, at = 0; y < high; y++) {
    const row = Math.floor(((y + 0.5) * height) / high) * width;
    for (let x = 0; x < wide; x++) ids[at++] = united[full[row + columns[x]]];
  }
  return ids;
}

/** Where two maps differ, over the classes that both models have: 0 alike, 1 different, 2 not compared. */
function differ(own, other, shared) {
  const marks = new Uint8Array(own.length);
  let different = 0, compared = 0;
  for (let at = 0; at < own.length; at++) {
    if (!shared.has(own[at]) || !shared.has(other[at])) { marks[at] = 2; continue; }
    compared++;
    if (own[at] !== other[at]) { marks[at] = 1; different++; }
  }
  return { marks, different, compared };
}

/** Fill a canvas with the image, and colours over it: `colours` gives one of 32 bits for each value of `values`. */
function paint(canvas, image, values, colours, alpha) {
  const { width, height } = image, context = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  context.drawImage(image, 0, 0);
  if (!values) return;
  const top = new OffscreenCanvas(width, height), pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  for (let at = 0; at < words.length; at++) words[at] = colours[values[at]] ?? 0;
  top.getContext("2d").putImageData(pixels, 0, 0);
  context.globalAlpha = alpha;
  context.drawImage(top, 0, 0);
  context.globalAlpha = 1;
}

/** A colour as the 32 bits that a picture's memory has on this machine. */
function word([red, green, blue]) {
  return new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0];
}
