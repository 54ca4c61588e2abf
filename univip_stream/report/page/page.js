"use strict";
// Everything from the shards is put into the page as text or as a number, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const gallery = document.getElementById("gallery");
const dialog = document.getElementById("detail");
const search = document.querySelector("input[type=search]");
const KINDS = [
  ["all", "All"], ["damaged", "Unreadable now"], ["failure", "Failures"], ["no-boxes", "No boxes"],
  ["filled", "Filled at random"], ["extreme", "Extremes"], ["random", "Random sample"],
];
const FEW_FAILURES = 4; // among all images; the filter shows them all
const GALLERY_BOXES = 16; // boxes on a small picture
const FIRST_BOXES = 20; // on the large one; the slider shows more
const layers = { mined: true, views: true, overlap: true, instances: true };
let kind = "all", visible = [], open = -1;

const number = (value) => value.toLocaleString("en-US");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : word.endsWith("x") ? "es" : "s"}`;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function drawing(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const box = ([x, y, width, height], name, more = {}) => drawing("rect", { x, y, width, height, class: name, ...more });
const haloed = (rect, name, more = {}) => [box(rect, "halo", more), box(rect, name, more)];

function over(width, height, ...shapes) {
  return drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "over", "aria-hidden": "true" }, ...shapes);
}

const colour = (item, k) => (item.ranks[k] == null ? "naive" : "taken"); // of an instance
const faded = (rank, of) => Math.max(0.35, 1 - rank / Math.max(of, 1)).toFixed(2);

// ---- the gallery

function matches(item) {
  const wanted = search.value.trim().toLowerCase();
  const ofKind = kind === "all" || item.marks.some(([mark]) => mark === kind);
  const fields = [item.key, item.source, item.label, item.problem, item.shard];
  return ofKind && fields.some((field) => field != null && String(field).toLowerCase().includes(wanted));
}

function card(item, place) {
  const marks = make("span", { class: "marks" }, ...item.marks.map(([name, text]) => make("span", { class: `mark ${name}` }, text)));
  let thumb, meta;
  if (item.image) {
    const shapes = item.boxes.slice(0, GALLERY_BOXES).map((rect, rank) => box(rect, "mined", { opacity: faded(rank, GALLERY_BOXES) })).reverse();
    thumb = make("span", { class: "thumb" }, make("img", { src: item.image, alt: "", loading: "lazy" }), over(item.width, item.height, ...shapes));
    meta = `${plural(item.boxes.length, "box")} · ${item.width} × ${item.height} px`;
  } else {
    thumb = make("span", { class: "thumb none" }, item.problem);
    meta = item.shard;
  }
  const words = make("span", { class: "words" }, make("span", { class: "source", title: item.source }, item.source),
    make("span", { class: "meta" }, meta), marks);
  return make("button", { type: "button", class: "card", onclick: () => show(place) }, thumb, words);
}

function refresh() {
  visible = data.items.filter(matches);
  let failures = 0;
  if (kind === "all" && !search.value.trim()) visible = visible.filter((item) => item.marks[0][0] !== "failure" || failures++ < FEW_FAILURES);
  gallery.replaceChildren(...visible.map(card));
  const listed = data.items.filter((item) => item.marks[0][0] === "failure").length;
  const parts = [plural(visible.length, "image")];
  if (failures > FEW_FAILURES) parts.push(`${FEW_FAILURES} of ${plural(data.failed, "failure")} among them; “Failures” shows ${listed === data.failed ? "all" : `the first ${number(listed)}`}`);
  else if (kind === "failure" && listed < data.failed) parts.push(`the first ${number(listed)} of ${plural(data.failed, "failure")}`);
  const small = visible.some((item) => item.image && item.boxes.length > GALLERY_BOXES);
  if (small) parts.push(`small pictures show the best ${GALLERY_BOXES} boxes, the better the brighter`);
  document.querySelector(".found").textContent = parts.join(" · ");
  if (!visible.length) gallery.append(make("p", { class: "empty" }, "No image fits. Choose another filter, or clear the search."));
  for (const button of document.querySelectorAll(".filters button")) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
}

function filters() {
  const group = document.querySelector(".filters");
  for (const [name, text] of KINDS) {
    const count = name === "all" ? data.items.length : data.items.filter((item) => item.marks.some(([mark]) => mark === name)).length;
    if (!count && name === "damaged") continue;
    group.append(make("button", { type: "button", "data-kind": name, disabled: !count, onclick: () => { kind = name; refresh(); } },
      text, make("span", { class: "n" }, number(count))));
  }
}

function moveInGallery(event) {
  const cards = [...gallery.querySelectorAll(".card")];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) return;
  const columns = cards.filter((other) => other.offsetTop === cards[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: cards.length - 1 - at }[event.key];
  if (step === undefined || !cards[at + step]) return;
  event.preventDefault();
  cards[at + step].focus();
}

// ---- one image

function show(place) {
  if (place < 0 || place >= visible.length) return;
  open = place;
  const item = visible[place];
  dialog.querySelector("h2").textContent = item.source;
  const facts = [`key ${item.key}`, item.shard];
  if (item.label != null) facts.push(`label ${item.label}`);
  if (item.width) facts.push(`${item.width} × ${item.height} px`, plural(item.boxes.length, "box"));
  if (item.converted) facts.push(`stored as JPEG (${item.converted})`);
  dialog.querySelector(".sub").textContent = facts.join(" · ");
  dialog.querySelector(".place").textContent = `${place + 1} of ${visible.length}`;
  const [back, next] = dialog.querySelectorAll("[data-move]");
  back.disabled = place === 0;
  next.disabled = place === visible.length - 1;
  const marks = make("p", { class: "marks" }, ...item.marks.map(([name, text]) => make("span", { class: `mark ${name}` }, text)));
  const body = dialog.querySelector(".body");
  if (item.image) body.replaceChildren(whole(item, marks), cuts(item));
  else body.replaceChildren(marks, make("p", { class: "reason" }, item.problem));
  body.scrollTop = 0;
  if (!dialog.open) dialog.showModal();
  dialog.querySelector("h2").focus();
  history.replaceState(null, "", `#${encodeURIComponent(item.key)}`);
}

function whole(item, marks) {
  const { width, height, boxes } = item;
  const groups = {
    mined: drawing("g", {}, ...boxes.map((rect, rank) => drawing("g", { opacity: faded(rank, FIRST_BOXES) }, ...haloed(rect, "mined"))).reverse()),
    overlap: drawing("g", {}, ...(item.overlap[2] ? [box(item.overlap, "overlap")] : [])),
    views: drawing("g", {}, ...item.scenes.flatMap((rect, view) => haloed(rect, `view${view + 1}`))),
    instances: drawing("g", {}, ...item.instances.flatMap((rect, k) => haloed(rect, colour(item, k)))),
  };
  const light = drawing("g", {});
  const svg = over(width, height, ...Object.values(groups), light);
  const legend = make("div", { class: "legend", role: "group", "aria-label": "What is drawn" });
  const names = { mined: ["mined boxes", "mined"], views: ["two views", "view1", "view2"], overlap: ["their overlap", "overlap"], instances: [`${item.instances.length} instances${item.filled ? " (dashed: random boxes)" : ""}`, ...new Set(item.ranks.map((_, k) => colour(item, k)))] };
  for (const [name, [text, ...styles]] of Object.entries(names)) {
    const see = () => { layers[name] = check.checked; groups[name].style.display = layers[name] ? "" : "none"; };
    const check = make("input", { type: "checkbox", checked: layers[name], onchange: see });
    see();
    const swatches = styles.map((style) => drawing("svg", { viewBox: "0 0 18 12", class: "swatch" }, box([1.5, 1.5, 15, 9], style)));
    legend.append(make("label", {}, check, ...swatches, text));
  }
  const upto = make("div", { class: "upto" });
  const ranks = make("ol", { class: "ranks", "aria-label": "Boxes by rank, the best first" });
  if (boxes.length) {
    const said = make("output", {});
    const tell = () => {
      const shapes = [...groups.mined.children].reverse();
      shapes.forEach((shape, rank) => { shape.style.display = rank < slider.value ? "" : "none"; });
      said.textContent = `${slider.value} of ${boxes.length}`;
    };
    const slider = make("input", { type: "range", min: 0, max: boxes.length, value: Math.min(FIRST_BOXES, boxes.length), oninput: tell, "aria-label": "How many boxes are drawn, the best first" });
    upto.append("best boxes", slider, said);
    tell();
  }
  boxes.forEach((rect, rank) => {
    const lit = () => light.replaceChildren(box(rect, "lit"));
    const dark = () => light.replaceChildren();
    ranks.append(make("li", {}, make("button", { type: "button", class: item.ranks.includes(rank) ? "used" : "", onmouseenter: lit, onmouseleave: dark, onfocus: lit, onblur: dark },
      make("b", {}, String(rank + 1)), ` ${rect[2]} × ${rect[3]}`)));
  });
  const picture = make("div", { class: "picture whole" }, make("img", { src: item.image, alt: `The image ${item.source}` }), svg);
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.style.width = `min(100%, calc(62vh * ${(width / height).toFixed(4)}))`;
  return make("section", {}, picture, legend, upto, item.note ? make("p", { class: "said" }, item.note) : null, ranks, marks);
}

// A rectangle of the image in a view of it, in shares of the view; mirrored where the view is.
function within([x, y, w, h], [left, top, width, height], flipped) {
  const from = (x - left) / width, share = w / width;
  return [flipped ? 1 - from - share : from, (y - top) / height, share, h / height];
}

function cuts(item) {
  const views = make("div", { class: "pair" });
  item.cuts.scenes.forEach((cut, view) => {
    for (const [when, flipped] of [["before", false], ["after", cut.flipped]]) {
      const shapes = item.overlap[2] ? [box(within(item.overlap, item.scenes[view], flipped), "overlap")] : [];
      item.instances.forEach((rect, k) => shapes.push(box(within(rect, item.scenes[view], flipped), colour(item, k))));
      const dot = make("span", { class: `dot v${view}` });
      const caption = when === "before"
        ? make("figcaption", {}, dot, make("strong", {}, `View ${view + 1}`), ` ${item.scenes[view][2]} × ${item.scenes[view][3]} px, cut`)
        : make("figcaption", {}, `augmented${flipped ? ", mirrored" : ""}`);
      views.append(make("figure", {}, caption, make("div", { class: "picture" },
        make("img", { src: cut[when], alt: `View ${view + 1}, ${when} augmentation`, width: data.scene, height: data.scene }), over(1, 1, ...shapes))));
    }
  });
  const crops = make("div", { class: "crops" });
  item.cuts.instances.forEach((cut, k) => {
    const naive = item.ranks[k] == null;
    const pictures = ["before", "after"].map((when) => make("div", { class: "picture" },
      make("img", { src: cut[when], alt: `Instance ${k + 1}, ${when} augmentation`, width: data.instance, height: data.instance })));
    const caption = make("figcaption", {}, make("span", { class: `dot ${naive ? "n" : "m"}` }), naive ? "random box" : `box ${item.ranks[k] + 1}`, make("br"), `${item.instances[k][2]} × ${item.instances[k][3]} px`);
    crops.append(make("figure", {}, caption, ...pictures));
  });
  const share = item.overlap[2] * item.overlap[3] / (item.width * item.height);
  const tried = `${plural(item.tries, "pair")} of views drawn of at most ${data.tries}`;
  const overlapped = item.overlap[2] ? `overlap ${item.overlap[2]} × ${item.overlap[3]} px, ${(100 * share).toFixed(0)} % of the image` : "no overlap";
  const filled = item.filled ? `${item.filled} of ${item.instances.length} instances are random boxes` : `all ${item.instances.length} instances are mined boxes`;
  return make("section", {}, make("h3", {}, "What the networks see"), make("p", { class: "said" }, `${tried}; ${overlapped}; ${filled}.`), views,
    make("h3", {}, "Instances, cut and augmented"), crops);
}

function close() {
  history.replaceState(null, "", location.pathname + location.search);
  gallery.querySelectorAll(".card")[open]?.focus();
}

// ---- keys and clicks

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input[type=search], input[type=range]");
  if (dialog.open) {
    if (typing || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    show(open + (event.key === "ArrowLeft" ? -1 : 1));
  } else if (event.key === "/" && !typing) {
    event.preventDefault();
    search.focus();
  } else if (event.key === "Escape" && event.target === search) {
    search.value = "";
    refresh();
  } else if (!typing) moveInGallery(event);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  const move = event.target.closest("[data-move]");
  if (move) show(open + Number(move.dataset.move));
});
dialog.addEventListener("close", close);
search.addEventListener("input", refresh);
filters();
refresh();
const wanted = new URLSearchParams(`key=${location.hash.slice(1)}`).get("key"); // never throws, whatever the address holds
const linked = (item) => item.key === wanted;
if (wanted && !visible.some(linked) && data.items.some(linked)) {
  kind = "failure";
  refresh();
}
show(visible.findIndex(linked));
