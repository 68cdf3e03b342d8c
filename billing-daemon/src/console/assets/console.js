// Conveniences: live refresh, the theme, local times. Every page and action works without this script.
"use strict";

const EVERY_MS = 5000;
const root = document.documentElement;
const themes = ["auto", "light", "dark"];
let theme = localStorage.getItem("theme") || "auto";
let paused = localStorage.getItem("refresh") === "paused";
let tag = null;

function applyTheme() {
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
}

function showLocalTimes() {
  for (const time of document.querySelectorAll("time")) time.title = new Date(time.dateTime).toLocaleString();
}

// A form that is being filled must not disappear, and an opened part must not close.
function isBusy() {
  const active = document.activeElement;
  return paused || document.hidden || document.querySelector("main details[open], main form input:focus, main .still") ||
    (active && active.closest("main form"));
}

async function refresh() {
  const main = document.getElementById("main");
  if (isBusy() || main.querySelector("[name=token]")) return;
  const answer = await fetch(location.href, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
  if (answer.status !== 200) return;
  tag = answer.headers.get("ETag");
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (isBusy()) return;
  main.replaceChildren(...page.getElementById("main").childNodes);
  document.querySelector("nav").replaceWith(page.querySelector("nav"));
  showLocalTimes();
}

function button(id, label, press) {
  const found = document.getElementById(id);
  if (!found) return;
  found.hidden = false;
  found.textContent = label();
  found.addEventListener("click", () => { press(); found.textContent = label(); });
}

// The theme is set before the page is painted; the rest needs the page.
applyTheme();
document.addEventListener("DOMContentLoaded", () => {
  showLocalTimes();
  button("theme", () => "Theme: " + theme, () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    localStorage.setItem("theme", theme);
    applyTheme();
  });
  button("refresh", () => (paused ? "Resume refresh" : "Pause refresh"), () => {
    paused = !paused;
    localStorage.setItem("refresh", paused ? "paused" : "");
  });
  if (document.getElementById("refresh")) setInterval(() => refresh().catch(() => {}), EVERY_MS);
});
