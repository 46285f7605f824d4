// The browser's own code under Node, over sites on disk. Each line of standard input is {root, row, keys, inclusion};
// with, in `instead`, the text of files that are to be read as other than they are, and in `shown` what its page shows; each is answered by one line of JSON:
// the outcome, and every line that the page's button would write.
// usage: node judge.mjs ASSETS < SITES
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { verifyRow } = await import(pathToFileURL(join(resolve(process.argv[2]), "verify/story.js")).href);

async function judge({ root, row, keys = "research/keyring.json", inclusion = "", instead = {}, shown = null }) {
  const lines = [];
  const get = async (path) =>
    path in instead ? new TextEncoder().encode(instead[path]) : new Uint8Array(await readFile(join(root, path)));
  const say = (state, code, detail) => lines.push([state, code, detail]);
  try {
    await verifyRow({ get, say }, { row, keys, inclusion, log: "", sha256: "", local: false, shown });
  } catch (error) {
    say("failed", "stopped", error.message);
  }
  return { outcome: lines.some(([state]) => state === "failed") ? "failed" : "ok", lines };
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await judge(JSON.parse(line))) + "\n");
}
