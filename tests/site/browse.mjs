// Drives real Chromium over the built site and prints one JSON report; tests/site/test_browser.py judges it.
// usage: node browse.mjs PLAN.json     PLAN: {chromium, base, pages, axe: bool, shots: folder|null, variants: [...], probe: code|absent, hosts: resolver rules|absent}
import { readFileSync } from "node:fs";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const plan = JSON.parse(readFileSync(process.argv[2], "utf8"));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const profile = mkdtempSync(join(tmpdir(), "gh-browser-"));
const report = { pages: [], errors: [] };

const variants = plan.variants ?? [
  { name: "light-wide", colorScheme: "light", width: 1280, height: 900 },
  { name: "dark-wide", colorScheme: "dark", width: 1280, height: 900 },
  { name: "light-narrow", colorScheme: "light", width: 320, height: 720 },
  { name: "dark-narrow", colorScheme: "dark", width: 320, height: 720 },
  { name: "no-script", colorScheme: "light", width: 1280, height: 900, javaScriptEnabled: false },
];

const browser = await chromium.launch({
  executablePath: plan.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         ...(plan.hosts ? [`--host-resolver-rules=${plan.hosts}`] : [])],
});
try {
  for (const variant of variants) {
    const script = variant.javaScriptEnabled !== false;
    const context = await browser.newContext({
      viewport: { width: variant.width, height: variant.height },
      colorScheme: variant.colorScheme,
      javaScriptEnabled: script,
      bypassCSP: false,
    });
    for (const path of variant.pages ?? plan.pages) {
      const page = await context.newPage();
      const entry = { path, variant: variant.name, outside: [], console: [], failed: [] };
      page.on("request", (request) => {
        const url = request.url();
        if (!url.startsWith(plan.base) && !url.startsWith("data:")) entry.outside.push(url);
      });
      page.on("response", (response) => {
        if (response.status() >= 400) entry.failed.push(`${response.status()} ${response.url()}`);
      });
      page.on("console", (message) => {
        if (message.type() === "error" || message.type() === "warning") entry.console.push(message.text());
      });
      page.on("pageerror", (error) => entry.console.push(String(error)));
      await page.goto(plan.base + path, { waitUntil: "load" });
      if (script) await page.waitForTimeout(60);
      entry.overflow = await page.evaluate(
        () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (plan.shots) {
        const name = (path.replace(/\//g, "_") || "home") + "-" + variant.name + ".png";
        await page.screenshot({ path: join(plan.shots, name), fullPage: plan.fullPage ?? true });
      }
      if (script && plan.axe !== false) {
        // Playwright evaluates in the page's own world: the CSP governs script tags, not the debugger.
        await page.evaluate(axe);
        const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
        entry.violations = result.violations.map((violation) => ({
          id: violation.id,
          help: violation.help,
          nodes: violation.nodes.slice(0, 4).map((node) => `${node.target.join(" ")} :: ${node.failureSummary}`),
        }));
      }
      if (plan.probe) entry.probe = await page.evaluate(plan.probe);
      if (plan.probe && plan.shots) {
        const name = path.replace(/\//g, "_") + variant.name + "-after.png";
        await page.screenshot({ path: join(plan.shots, name), fullPage: true });
      }
      report.pages.push(entry);
      await page.close();
    }
    await context.close();
  }
} catch (error) {
  report.errors.push(String(error));
} finally {
  await browser.close();
  rmSync(profile, { recursive: true, force: true });
}
process.stdout.write(JSON.stringify(report));
