/* The row of figures: pool, share cached, times to first token and between tokens, requests; each with its last minutes. */

import { bytes, count, counted, element, percent, say, seconds, set, svg } from "./dom.js";

const KEPT = 120;
const LEAST_WIDE = 20;
const CHART = { width: 200, height: 40 };

class Figure {
  #history = [];
  #value = element("p", { class: "value" });
  #below = element("p", { class: "note" });
  #area = svg("path", { class: "area" });
  #lines;
  #chart;
  #title;

  /** lines: how many curves its chart has, the main one first. top: of the chart; null grows with what is shown. */
  constructor(title, lines, top = null) {
    this.top = top;
    this.#title = title;
    this.#lines = Array.from({ length: lines }, (_, at) => svg("path", { class: `line line-${at}` }));
    const frame = { class: "chart", viewBox: `0 0 ${CHART.width} ${CHART.height}`, preserveAspectRatio: "none", role: "img" };
    this.#chart = svg("svg", frame, this.#area, ...this.#lines);
    this.node = element("article", { class: "figure" }, element("h3", {}, title), this.#value, this.#below, this.#chart);
  }

  /** points: of this moment, one a line; null where there is nothing to show. */
  show(value, below, points) {
    say(this.#value, value);
    say(this.#below, below);
    this.#history.push(points);
    if (this.#history.length > KEPT) this.#history.shift();
    const shown = this.#history.flat().filter((point) => point !== null);
    const top = this.top ?? Math.max(...shown, 1e-9) * 1.1;
    this.#lines.forEach((line, at) => set(line, { d: this.#path(at, top) }));
    set(this.#area, { d: this.#path(0, top, true) });
    set(this.#chart, { "aria-label": `${this.#title} over the last minutes; now ${value}, ${below}` });
  }

  #path(line, top, closed = false) {
    const places = Math.max(this.#history.length, LEAST_WIDE);  // young charts are wide ones
    const step = CHART.width / (places - 1);
    const first = places - this.#history.length;
    let path = "";
    let from = null;
    let last = null;
    const close = () => (closed && from !== null ? `V${CHART.height}H${from.toFixed(1)}Z` : "");
    this.#history.forEach((points, at) => {
      const value = points[line];
      const x = (first + at) * step;
      if (value === null) {
        path += close();
        from = null;
      } else {
        const y = CHART.height - 1 - (Math.min(value, top) / top) * (CHART.height - 3);
        path += `${from === null ? "M" : "L"}${x.toFixed(1)},${y.toFixed(1)}`;
        from ??= x;
        last = x;
      }
    });
    return last === null ? "" : path + close();
  }
}

const percentiles = (latency) => (latency ? [latency.p50, latency.p95] : [null, null]);

export class Figures {
  #pool = new Figure("Pool", 2, 1);
  #share = new Figure("Share cached", 1, 1);
  #first = new Figure("First token", 2);
  #between = new Figure("Between tokens", 2);
  #requests = new Figure("Requests", 2);

  constructor(target) {
    target.replaceChildren(...this.#all().map((figure) => figure.node));
  }

  #all() {
    return [this.#pool, this.#share, this.#first, this.#between, this.#requests];
  }

  show({ pool, window, running, waiting }) {
    const host = pool.host_bytes ? ` · ${bytes(pool.host_bytes)} in host memory` : "";
    const disk = pool.disk_bytes ? ` · ${bytes(pool.disk_bytes)} on disk` : "";
    this.#pool.show(percent(pool.cached), `of ${count(pool.tokens)} tokens · ${percent(pool.held)} held${host}${disk}`, [pool.cached, pool.held]);
    const share = window.prompt_tokens ? window.cached_tokens / window.prompt_tokens : null;
    const looked = window.prompt_tokens ? `${count(window.cached_tokens)} of ${count(window.prompt_tokens)} prompt tokens` : "no prompt in the last minute";
    this.#share.show(share === null ? "–" : percent(share), looked, [share]);
    this.#latency(this.#first, window.ttft, "request", "requests");
    this.#latency(this.#between, window.itl, "token", "tokens");
    const said = window.generated_tokens / Math.max(window.seconds, 1);
    this.#requests.show(`${count(running)}`, `running · ${count(waiting)} waiting · ${said.toFixed(said && said < 10 ? 1 : 0)} tokens/s`, [running, waiting]);
  }

  #latency(figure, latency, one, many) {
    const below = latency ? `median · p95 ${seconds(latency.p95)} · ${counted(latency.count, one, many)}` : "none in the last minute";
    figure.show(latency ? seconds(latency.p50) : "–", below, percentiles(latency));
  }
}
