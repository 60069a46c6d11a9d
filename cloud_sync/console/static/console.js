"use strict";
(() => {
  const live = () => document.getElementById("live");
  let plots = [];

  function mark(ok) {
    const element = live();
    if (!element) return;
    element.classList.toggle("lost", !ok);
    element.textContent = ok ? "live" : "no answer";
  }

  document.addEventListener("htmx:after:request", (event) => {
    const response = event.detail && event.detail.ctx && event.detail.ctx.response;
    mark(Boolean(response && response.status && response.status < 400));
  });
  document.addEventListener("htmx:error", () => mark(false));

  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button && button.dataset.confirm && !window.confirm(button.dataset.confirm)) event.preventDefault();
  });

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  const shareOf = (name) => name === "confidence";

  function options(figure, names) {
    const axis = { stroke: colour("--mute"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui" };
    const clock = (t) => new Date(t * 1000).toISOString().slice(11, 16);
    const hours = (_, ticks) => ticks.map((t, i) => (i === 0 || clock(t) === "00:00" ? `${clock(t)}\n${new Date(t * 1000).toISOString().slice(0, 10)}` : clock(t)));
    const round = (_, value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4));
    return {
      width: Math.max(200, figure.clientWidth - 24),
      height: 170,
      axes: [{ ...axis, space: 70, values: hours }, { ...axis, size: 52 }],
      scales: { y: { range: (_, low, high) => (low === null ? [0, 1] : [Math.min(0, low), shareOf(names[0]) ? Math.max(1, high) : high > 0 ? high * 1.08 : 1]) } },
      cursor: { drag: { x: true, y: false } },
      series: [{ value: (_, t) => (t === null || t === undefined ? "–" : new Date(t * 1000).toISOString().slice(0, 19).replace("T", " ")) }].concat(
        names.map((name, i) => ({ label: name.replaceAll("_", " "), stroke: colour(`--series-${i + 1}`), width: 1.75, spanGaps: false, value: round, points: { size: 5 } }))
      ),
      tzDate: (t) => uPlot.tzDate(new Date(t * 1000), "Etc/UTC"),
    };
  }

  async function refresh(charts) {
    const answer = await fetch(charts.dataset.series, { credentials: "same-origin" });
    if (!answer.ok) return mark(false);
    const series = await answer.json();
    for (const figure of charts.querySelectorAll("figure")) {
      const names = figure.dataset.chart.split(" ");
      const data = [series.t, ...names.map((name) => series[name])];
      const known = plots.find((p) => p.figure === figure);
      if (known) known.plot.setData(data);
      else plots.push({ figure, names, plot: new uPlot(options(figure, names), data, figure) });
    }
  }

  function rebuild(charts) {
    for (const { plot } of plots) plot.destroy();
    plots = [];
    refresh(charts).catch(() => mark(false));
  }

  function follow() {
    const charts = document.getElementById("charts");
    if (!charts) {
      if (location.pathname.startsWith("/devices/")) setTimeout(follow, 2000);
      return;
    }
    refresh(charts).catch(() => mark(false));
    setInterval(() => refresh(charts).catch(() => mark(false)), Number(charts.dataset.period) * 1000);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => rebuild(charts));
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (Math.abs(window.innerWidth - width) < 20) return;
      width = window.innerWidth;
      rebuild(charts);
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", follow);
  else follow();
})();
