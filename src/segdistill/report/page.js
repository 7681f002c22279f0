"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Curves: a chip shows or hides its group in all figures.
  for (const chip of all("[data-series]")) {
    chip.addEventListener("click", () => {
      const on = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", on);
      for (const line of all("." + chip.dataset.series)) line.classList.toggle("off", !on);
    });
  }

  // Tables: a click on a heading sorts.
  const value = (cell) => {
    const number = parseFloat(cell.textContent.replace("−", "-").replaceAll(",", ""));
    return Number.isNaN(number) ? null : number;
  };
  for (const heading of all("table.sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const table = heading.closest("table"), column = heading.cellIndex, numeric = heading.classList.contains("n");
      const up = heading.getAttribute("aria-sort") === (numeric ? "descending" : "ascending") ? !numeric : numeric;
      for (const other of all("th", table.tHead)) other.removeAttribute("aria-sort");
      const down = numeric ? up : !up ? false : true;
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => {
        const x = a.cells[column], y = b.cells[column];
        if (!numeric) return x.textContent.localeCompare(y.textContent);
        const p = value(x), q = value(y);
        if (p === null || q === null) return (p === null) - (q === null) || 0;
        return p - q;
      };
      const known = (row) => !numeric || value(row.cells[column]) !== null;
      const rows = [...table.tBodies[0].rows];
      const sorted = rows.filter(known).sort((a, b) => (down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...sorted, ...rows.filter((row) => !known(row)));
    });
  }

  // Pictures.
  const form = document.querySelector(".tools");
  if (!form) return;
  const shots = all(".shot"), box = document.querySelector(".cards");
  const palette = JSON.parse(document.querySelector("[data-palette]").dataset.palette);
  const filtered = new Map();

  /** A map of classes where all but one class are faint. */
  const only = (image, index) => {
    const key = index + image.src;
    if (!filtered.has(key)) {
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height), data = pixels.data;
      const [r, g, b] = palette[index];
      for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] && (data[i] !== r || data[i + 1] !== g || data[i + 2] !== b)) {
          data.set([128, 134, 142, 40], i);
        }
      }
      context.putImageData(pixels, 0, 0);
      filtered.set(key, canvas.toDataURL());
    }
    return filtered.get(key);
  };

  const show = (shot) => {
    const chosen = form.elements["class"].value, layer = (key) => shot.querySelector(`[data-layer="${CSS.escape(key)}"]`);
    const place = shot.querySelector(".compare"), photo = layer("photo");
    for (const image of all(".photo", place)) image.src = photo.src;
    for (const [side, selector] of [["left", ".under"], ["right", ".shape"]]) {
      const source = layer(form.elements[side].value) || photo, target = place.querySelector(selector);
      target.src = source.dataset.kind === "classes" && chosen !== "" ? only(source, +chosen) : source.src;
      target.classList.toggle("solid", source.dataset.kind === "photo");
      place.querySelector(".tag." + side).textContent = source.dataset.label;
    }
    const ious = JSON.parse(shot.dataset.ious);
    for (const figure of all("[data-iou]", shot)) {
      figure.dataset.all ??= figure.textContent;
      const one = chosen === "" ? null : ious[figure.dataset.iou][+chosen];
      figure.textContent = chosen === "" ? figure.dataset.all : one === null ? "–" : (100 * one).toFixed(1);
    }
    const gain = shot.querySelector("[data-gain]");
    if (gain) {
      gain.dataset.all ??= gain.textContent;
      const [a, b] = ["left", "right"].map((side) => (chosen === "" ? undefined : ious[form.elements[side].value]?.[+chosen]));
      const score = gain.dataset.gain === "score", known = typeof b === "number" && (score || typeof a === "number");
      const points = known ? (100 * (score ? b : b - a)).toFixed(1) : "";
      const told = score ? points + " %" : (points >= 0 ? "+" : "") + points.replace("-", "−");
      gain.textContent = chosen === "" ? gain.dataset.all : known ? told : "–";
      if (!score) gain.className = gain.textContent.startsWith("−") ? "down" : "up";
    }
    place.hidden = false;
  };

  const order = [...shots];
  const update = () => {
    const chosen = form.elements["class"].value, right = form.elements.right.value, left = form.elements.left.value;
    const gain = (shot) => {
      const ious = JSON.parse(shot.dataset.ious), of = (key) => (ious[key] ? ious[key][+chosen] : null);
      return of(right) === null ? (Object.values(ious)[0][+chosen] === null ? null : 0) : of(right) - (of(left) ?? 0);
    };
    box.style.setProperty("--alpha", form.elements.alpha.value / 100);
    const seen = chosen === "" ? order : order.filter((shot) => gain(shot) !== null).sort((a, b) => gain(b) - gain(a));
    for (const shot of shots) shot.hidden = shot.style.display = seen.includes(shot) ? "" : "none";
    box.append(...seen);
    seen.forEach(show);
    const told = chosen === "" ? "" : `${seen.length} of ${shots.length} images have this class; the largest difference from left to right first`;
    document.querySelector(".count").textContent = told;
    all(".legend[data-palette] li").forEach((item, i) => item.classList.toggle("dim", chosen !== "" && i !== +chosen));
  };

  for (const shot of shots) {
    const place = shot.querySelector(".compare"), slider = place.querySelector("input");
    slider.addEventListener("input", () => place.style.setProperty("--pos", slider.value + "%"));
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  Promise.all(all(".strip img").map((image) => image.decode().catch(() => null))).then(update);
})();
