// Drives real Chromium over built sites. Each line of standard input is a plan; each is answered by one line, a
// JSON report, which tests/site judges. One browser serves all plans: to start one costs more than most looks.
// PLAN: {base, pages, axe: bool, shots: folder|null, variants: [...], probe: code|absent}
// usage: node browse.mjs CHROMIUM < PLANS
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         // A name of this machine that browsers do not count as this machine.
         "--host-resolver-rules=MAP glasshouse.test 127.0.0.1"],
});

async function look(context, variant, path, plan) {
  const script = variant.javaScriptEnabled !== false;
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
  await page.close();
  return entry;
}

async function report(plan) {
  const found = { pages: [], errors: [] };
  for (const variant of plan.variants) {
    // A context of its own has no cache: what a plan altered on disk is what the next one sees.
    const context = await browser.newContext({
      viewport: { width: variant.width, height: variant.height },
      colorScheme: variant.colorScheme,
      javaScriptEnabled: variant.javaScriptEnabled !== false,
      bypassCSP: false,
    });
    try {
      for (const path of variant.pages ?? plan.pages) found.pages.push(await look(context, variant, path, plan));
    } catch (error) {
      found.errors.push(String(error));
    } finally {
      await context.close();
    }
  }
  return found;
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await report(JSON.parse(line))) + "\n");
}
await browser.close();
