// The button on a row's page: checks the row with this browser's own cryptography, and says what it found.
// Every file comes from this site. What is checked, and what is not, verify/story.js says.

import { verifyRow } from "./verify/story.js";
import { plainText } from "./verify/shown.js";

/** @typedef {import("./verify/story.js").State} State */

const box = document.getElementById("gh-verify");
if (box) ready(box);

/** @param {HTMLElement} box */
function ready(box) {
  const button = /** @type {HTMLButtonElement} */ (box.querySelector("button"));
  const list = /** @type {HTMLElement} */ (box.querySelector("ol"));
  const verdict = /** @type {HTMLElement} */ (box.querySelector("[role=status]"));
  const data = /** @type {Record<string, string>} */ (box.dataset);
  const site = new URL(data.root, location.href).href;
  const shownCommand = /** @type {HTMLElement} */ (box.querySelector("[data-command]"));
  shownCommand.textContent = `glasshouse verify ${site}research/artifacts/${data.row}.json`;

  /** @type {Record<State, [string, string]>} */
  const MARKS = { ok: ["is-ok", "ok"], failed: ["is-bad", "failed"], skipped: ["is-open", "not checked"] };
  let failures = 0;
  /** @param {State} state @param {string} code @param {string} detail */
  const say = (state, code, detail) => {
    const line = document.createElement("li");
    const [style, mark] = MARKS[state];
    line.className = style;
    line.dataset.state = state;
    for (const [tag, name, words] of [["span", "gh-checks__mark", mark], ["code", "", code], ["span", "", detail]]) {
      const part = document.createElement(tag);
      part.className = name;
      part.textContent = words;
      line.append(part, " ");
    }
    list.append(line);
    failures += Number(state === "failed");
  };
  /** @param {string} path */
  const get = async (path) => {
    const answer = await fetch(site + path, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${path} cannot be fetched (${answer.status})`);
    return new Uint8Array(await answer.arrayBuffer());
  };
  const page = () => ({
    row: data.row, keys: data.keys, inclusion: data.inclusion, log: data.log, sha256: data.sha256,
    local: "local" in data, shown: shownTexts(),
  });

  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    list.replaceChildren();
    failures = 0;
    data.outcome = "running";
    verdict.textContent = "Checking…";
    let outcome = "unavailable";
    try {
      const safe = window.isSecureContext && crypto.subtle;
      const known = safe && await crypto.subtle.generateKey({ name: "Ed25519" }, false, ["sign", "verify"]).then(() => true, () => false);
      if (!safe) {
        verdict.textContent = "Unavailable: this page was not served over https or from this machine by http, so the browser offers no cryptography here. Use the command.";
      } else if (!known) {
        verdict.textContent = "Unavailable: this browser cannot check Ed25519 signatures. Use the command.";
      } else {
        outcome = "failed";
        await verifyRow({ get, say }, page());
        outcome = failures ? "failed" : "ok";
        verdict.textContent = failures
          ? `Not verified: ${failures} check${failures === 1 ? "" : "s"} failed.`
          : "Everything that this page can check holds. What it cannot check is listed too.";
      }
    } catch (error) {
      say("failed", "stopped", /** @type {Error} */ (error).message);
      verdict.textContent = "Not verified: the check could not be finished.";
    }
    data.outcome = outcome;
    button.disabled = false;
  });
}

/** What the page shows, by name: cells of one line are told apart by a space. */
function shownTexts() {
  /** @type {Record<string, string[]>} */ const found = {};
  for (const element of document.querySelectorAll("[data-shown]")) {
    const name = /** @type {HTMLElement} */ (element).dataset.shown ?? "";
    const cells = element.matches("tr") ? [...element.children] : [element];
    const texts = cells.map((cell) => plainText(cell.textContent ?? ""));
    (found[name] ??= []).push(name === "json" ? element.textContent ?? "" : texts.join(" "));
  }
  return found;
}
