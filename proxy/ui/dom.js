/* Elements and figures. Text goes in as text: nothing here parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. Attributes: null leaves one out, `on*` listens. Children: nodes or text. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

export const byId = (id) => document.getElementById(id);

function filled(made, attributes, children) {
  set(made, attributes);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function set(target, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) target.addEventListener(name.slice(2), value);
    else if (value === null || value === false) target.removeAttribute(name);
    else target.setAttribute(name, value === true ? "" : value);
  }
}

/** Change text only where it differs, so that a selection in it survives. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

const NUMBER = new Intl.NumberFormat("en-US");

export const count = (number) => NUMBER.format(Math.round(number));

export const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;

/** "1 branch", "1,204 branches". */
export const counted = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

export function seconds(value) {
  if (value < 0.001) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.0095) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  return `${count(value)} s`;
}

export function age(value) {
  if (value < 1) return "now";
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  return value < 86400 ? `${Math.floor(value / 3600)} h` : `${Math.floor(value / 86400)} d`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let at = -1;
  do { value /= 1024; at += 1; } while (value >= 1024 && at < units.length - 1);
  return `${value.toFixed(value < 10 ? 1 : 0)} ${units[at]}`;
}

/** A bar of parts: [[class, share 0..1], …]. Its text stands beside it, so it is hidden from assistive technology. */
export function bar(parts) {
  const rects = [];
  let start = 0;
  for (const [kind, share] of parts) {
    const width = Math.max(0, Math.min(share, 1 - start)) * 100;
    rects.push(svg("rect", { class: `part ${kind}`, x: `${start * 100}%`, y: 0, width: `${width}%`, height: "100%" }));
    start += width / 100;
  }
  return svg("svg", { class: "bar", "aria-hidden": "true", preserveAspectRatio: "none" }, ...rects);
}
