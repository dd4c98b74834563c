"use strict";
// Refreshes the page: replaces the parts that changed, and keeps the focus.

const live = document.querySelector(".live");
// A page that reads the kernel is loaded once, and not refreshed.
const once = document.querySelector("[data-once]");
let refreshing = false;
let again = false;

async function refresh() {
  if (once) return;
  if (refreshing) { again = true; return; }
  refreshing = true;
  try {
    const response = await fetch(location.href, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const part of document.querySelectorAll("[data-part]")) {
      const next = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
      if (next && next.innerHTML !== part.innerHTML) replace(part, next);
    }
    live.textContent = "";
  } catch {
    live.textContent = "the agent does not respond";
  } finally {
    refreshing = false;
    if (again) { again = false; refresh(); }
  }
}

function replace(part, next) {
  const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
  part.replaceChildren(...document.importNode(next, true).childNodes);
  if (focused) {
    for (const link of part.querySelectorAll("a")) {
      if (link.getAttribute("href") === focused) { link.focus(); break; }
    }
  }
}

let due = 0;
function refreshSoon() {
  if (!due) due = setTimeout(() => { due = 0; refresh(); }, 150);
}

const changes = new EventSource("/changes");
changes.addEventListener("message", refreshSoon);
changes.addEventListener("open", refreshSoon);
changes.addEventListener("error", () => { live.textContent = "the agent does not respond"; });
setInterval(refresh, 5000);

const form = document.querySelector("form.search");
if (form) {
  const search = () => {
    history.replaceState(null, "", "/?" + new URLSearchParams(new FormData(form)));
    refresh();
  };
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
}

document.addEventListener("keydown", (event) => {
  const input = document.querySelector("input[type=search]");
  if (event.key === "/" && input && document.activeElement !== input) {
    event.preventDefault();
    input.focus();
  }
});

function theme() { return localStorage.getItem("theme"); }
function isDark() {
  return theme() ? theme() === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
function applyTheme() {
  if (theme()) document.documentElement.dataset.theme = theme();
}
document.querySelector(".theme").addEventListener("click", () => {
  localStorage.setItem("theme", isDark() ? "light" : "dark");
  applyTheme();
  for (const chart of charts.splice(0)) chart.destroy();
  draw();
});
applyTheme();

const CHARTS = {
  latency: (moment) => (moment.latency === null ? null : moment.latency * 1000),
  changes: (moment) => moment.changes,
  connections: (moment) => moment.connections,
};
const charts = [];

function makeChart(place, data) {
  const style = getComputedStyle(document.documentElement);
  const axis = { stroke: style.getPropertyValue("--soft"), grid: { stroke: style.getPropertyValue("--edge") } };
  return new uPlot({
    width: place.clientWidth, height: 140, legend: { show: false }, cursor: { y: false },
    scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1)] } },
    axes: [{ ...axis }, { ...axis, size: 46 }],
    series: [{}, { stroke: style.getPropertyValue("--link"), width: 2, points: { size: 5 } }],
  }, data, place);
}

async function draw() {
  const places = [...document.querySelectorAll("[data-chart]")];
  if (!places.length) return;
  let moments;
  try { moments = await (await fetch("/timeline", { cache: "no-store" })).json(); } catch { return; }
  places.forEach((place, index) => {
    const value = CHARTS[place.dataset.chart];
    const seen = moments.filter((moment) => value(moment) !== null);
    const data = [seen.map((moment) => moment.second), seen.map(value)];
    if (charts[index]) charts[index].setData(data);
    else charts[index] = makeChart(place, data);
  });
}
draw();
setInterval(draw, 2000);
addEventListener("resize", () => {
  document.querySelectorAll("[data-chart]").forEach((place, index) => {
    if (charts[index]) charts[index].setSize({ width: place.clientWidth, height: 140 });
  });
});
