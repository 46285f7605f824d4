// Check a signed row in the reader's own browser: signatures, file hashes, event chains, figures, ledger.
// WebCrypto only; every file comes from this site. What is not checked here is said on the page.
(() => {
  "use strict";
  const box = document.getElementById("gh-verify");
  if (!box) return;
  const button = box.querySelector("button");
  const list = box.querySelector("ol");
  const verdict = box.querySelector("[role=status]");
  const { row, root } = box.dataset;
  const site = new URL(root, location.href).href;
  const row_url = `${site}research/artifacts/${row}.json`;
  box.querySelector("[data-command]").textContent = `glasshouse verify ${row_url}`;

  // --- bytes -----------------------------------------------------------------------------------

  const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  const utf8 = (string) => new TextEncoder().encode(string);
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const unhex = (string) => Uint8Array.from(string.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  const same = (a, b) => hex(a) === hex(b);
  const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const digest = async (bytes) => hex(await sha256(bytes));
  const base64 = (string) => Uint8Array.from(atob(string), (char) => char.charCodeAt(0));
  const base64url = (string) => base64(string.replaceAll("-", "+").replaceAll("_", "/"));
  const joined = (...parts) => {
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  };
  const length = (bytes) => {
    const prefix = new Uint8Array(8);
    new DataView(prefix.buffer).setBigUint64(0, BigInt(bytes.length));
    return prefix;
  };
  // A label and its parts, each behind its length, so that no two lists give the same bytes.
  const domain_hash = (label, parts) =>
    sha256(joined(...[utf8(label), ...parts].flatMap((part) => [length(part), part])));

  // RFC 8785: keys by UTF-16 code units, numbers and strings as ECMAScript writes them.
  const canonical = (value) => {
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (value === null || typeof value !== "object") return JSON.stringify(value);
    const keys = Object.keys(value).sort();
    return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
  };
  const parse = (bytes, name) => {
    const string = typeof bytes === "string" ? bytes : text(bytes);
    const value = JSON.parse(string);
    if (canonical(value) !== string) throw new Error(`${name} is not in canonical form`);
    return value;
  };
  const without = (object, name) => Object.fromEntries(Object.entries(object).filter(([key]) => key !== name));

  const fetched = async (path) => {
    const answer = await fetch(site + path, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${path} cannot be fetched (${answer.status})`);
    return new Uint8Array(await answer.arrayBuffer());
  };

  // --- keys ------------------------------------------------------------------------------------

  // Under a key of small order, or written in a second way, signatures verify that nobody made: as tokens.py.
  const PRIME = 2n ** 255n - 19n;
  const ORDER_8 = 0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n;
  const SMALL = [0n, 1n, PRIME - 1n, ORDER_8, PRIME - ORDER_8];
  const signed_by = async (raw, signature, message) => {
    const y = BigInt(`0x${hex(raw.slice().reverse())}`) % 2n ** 255n;
    if (y >= PRIME || SMALL.includes(y)) return false;
    const key = await crypto.subtle.importKey("raw", raw, { name: "Ed25519" }, false, ["verify"]);
    return crypto.subtle.verify({ name: "Ed25519" }, key, signature, message);
  };
  const read_keys = async (path) => {
    const entries = [];
    for (const entry of parse(await fetched(path), "the keyring").keys) {
      const raw = base64url(entry.publicKey);
      if ((await digest(raw)) === entry.keyid) entries.push({ ...entry, raw });
    }
    return entries;
  };
  const listed = (keys, keyid, role, index) => {
    const entry = keys.find(
      (key) => key.keyid === keyid && key.role === role &&
        (index === undefined || ((key.validFrom ?? 0) <= index && index <= (key.validUntil ?? Infinity))));
    if (!entry) throw new Error(`the keyring lists no ${role} key ${String(keyid).slice(0, 16)} for this`);
    return entry;
  };

  // DSSE: the signature is over the type and the payload, each behind its length.
  const open_envelope = async (bytes, keys, type, index) => {
    const envelope = parse(bytes, "the envelope");
    if (envelope.signatures.length !== 1) throw new Error("the envelope has not exactly one signature");
    const payload = base64(envelope.payload);
    const kind = utf8(envelope.payloadType);
    const pae = joined(utf8(`DSSEv1 ${kind.length} `), kind, utf8(` ${payload.length} `), payload);
    const signer = listed(keys, envelope.signatures[0].keyid, "operator", index);
    if (!(await signed_by(signer.raw, base64(envelope.signatures[0].sig), pae))) {
      throw new Error("the signature does not verify");
    }
    const statement = parse(payload, "the statement");
    if (statement.predicateType !== type) throw new Error("the statement is of another type");
    return { statement, signer };
  };
  const read_token = async (token, raw, type) => {
    const [head, body, signature] = token.split(".");
    const header = JSON.parse(text(base64url(head)));
    if (header.alg !== "EdDSA" || header.typ !== type) throw new Error(`a token is no ${type}`);
    const claims = JSON.parse(text(base64url(body)));
    const key = typeof raw === "function" ? raw(header, claims) : raw;
    if (header.kid !== (await digest(key))) throw new Error(`a ${type} names another key`);
    if (!(await signed_by(key, base64url(signature), utf8(`${head}.${body}`)))) {
      throw new Error(`the signature of a ${type} does not verify`);
    }
    return claims;
  };

  // --- one protected launch ----------------------------------------------------------------------

  const check_exchange = async (keys, exchange, serial, run, leg, launch) => {
    const kid = JSON.parse(text(base64url(exchange.challenge.split(".")[0]))).kid;
    const broker = listed(keys, kid, "broker", serial);
    const challenge = await read_token(exchange.challenge, broker.raw, "gh-challenge+jwt");
    const ear = await read_token(exchange.ear, broker.raw, "gh-ear+jwt");
    const where = [run, leg, launch].join();
    if ([challenge.run, challenge.leg, challenge.launch].join() !== where) throw new Error("of another launch");
    if (ear["ear.glasshouse.evidence-sha256"] !== (await digest(utf8(exchange.evidence)))) {
      throw new Error("the broker's result is about other evidence");
    }
    if (ear.eat_nonce !== challenge.nonce) throw new Error("another nonce");
    // What was refused may be anything, signed by nobody: that the broker refused it is all there is to check.
    if (exchange.grant === null) return null;
    const claims = await read_token(exchange.evidence, (_, own) => base64url(own.event_key), "gh-evidence+jwt");
    if (claims.eat_nonce !== challenge.nonce) throw new Error("another nonce");
    // The broker signs whose evidence answers a challenge. Recorded ones of before it did hold no `cnf`.
    if ("cnf" in challenge) {
      const own = await sha256(utf8(canonical({ crv: "Ed25519", kty: "OKP", x: claims.event_key })));
      const jkt = btoa(String.fromCharCode(...own)).replaceAll("+", "-").replaceAll("/", "_").replace("=", "");
      if (canonical(challenge.cnf) !== canonical({ jkt })) throw new Error("the evidence is by another key than the one that asked");
    }
    const grant = await read_token(exchange.grant, broker.raw, "gh-grant+jwt");
    const transcript = [broker.keyid, run, leg, String(launch), exchange.challenge, exchange.launchToken,
                        exchange.evidence, exchange.ear];
    const info = await domain_hash("glasshouse/grant/v1", transcript.map(utf8));
    if (!same(info, base64url(grant.info))) throw new Error("the grant is bound to another exchange");
    return base64url(claims.event_key);
  };

  const LETTERS = { released: "r", unsealed: "u", "trainer-hardened": "h", progress: "p", trained: "t",
                    "sealed-outputs": "o", zeroized: "z", failed: "f" };
  const lines_of = (bytes) => {
    const string = text(bytes);
    if (string && !string.endsWith("\n")) throw new Error("the last line is not ended");
    return string.split("\n").slice(0, -1);
  };

  // Faults of an event chain by the codes of records/chain.py, in words: a record names the same ones.
  const note = (faults, holds, code, words) => {
    if (!holds && !faults.has(code)) faults.set(code, words);
    return holds;
  };

  const check_events = async (bytes, event_key, grant, complete) => {
    const events = [], hashes = [], faults = new Map();
    let previous = await digest(utf8(grant)), clock = 0;
    for (const [number, line] of lines_of(bytes).entries()) {
      const event = parse(line, `event ${number}`);
      const message = await domain_hash("glasshouse/event/v1", [utf8(canonical(without(event, "sig")))]);
      const signed = await signed_by(event_key, base64url(event.sig), message);
      // What follows hangs on a line that nobody signed.
      if (!note(faults, signed, "event-invalid", `the signature of event ${number} does not verify`)) break;
      note(faults, event.seq === number, "event-sequence", `event ${number} says it is event ${event.seq}`);
      note(faults, event.prev === previous, "event-link",
        number ? `event ${number} does not link to the one before` : "the chain does not begin at the grant");
      note(faults, event.tMs >= clock, "event-time", `the clock runs backwards at event ${number}`);
      [previous, clock] = [await digest(utf8(line)), event.tMs];
      events.push(event);
      hashes.push(previous);
    }
    const order = events.map((event) => LETTERS[event.type] ?? "?").join("");
    const whole = /^ruh+p*toz$/.test(order);
    const stopped = /^r(u(h+(p*(to?)?)?)?)?$/.test(order);
    const words = !order ? "there are no events" : stopped ? `the events stop at ${events.at(-1).type}` : "the events are out of order";
    note(faults, order, "events-missing", words);
    note(faults, whole || (!complete && (!order || /^r(u(h+(p*(to?)?)?)?)?f$/.test(order))), "event-order", words);
    return { events, hashes, faults };
  };

  const check_heads = async (bytes, hashes, operator, run, leg, launch) => {
    const faults = new Map();
    let last = -1, time = 0;
    const lines = bytes ? lines_of(bytes) : [];
    for (const [number, line] of lines.entries()) {
      const head = parse(line, `head ${number}`);
      const message = await domain_hash("glasshouse/head/v1", [utf8(canonical(without(head, "sig")))]);
      const signed = await signed_by(operator.raw, base64url(head.sig), message);
      note(faults, signed, "head-signature", `the operator's signature of head ${number} does not verify`);
      const here = [head.run, head.leg, head.launch].join() === [run, leg, launch].join();
      note(faults, here, "head-other-leg", `head ${number} is of another leg`);
      note(faults, head.time >= time, "head-time", `the clock runs backwards at head ${number}`);
      const fits = head.seq >= last && hashes[head.seq] === head.head;
      note(faults, fits, "head-mismatch", `head ${number} does not fit the chain`);
      [last, time] = [head.seq, head.time];
    }
    note(faults, !hashes.length || last === hashes.length - 1, "heads-incomplete", "the last event is not countersigned");
    return { count: lines.length, faults };
  };

  // --- figures -----------------------------------------------------------------------------------

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const percent = (log) => -100 * Math.expm1(log);

  // Student's t from the density of its angle: with x = sqrt(df) tan a, the density is cos(a)^(df-1).
  const t_quantile = (probability, df) => {
    const steps = 20000, width = Math.PI / 2 / steps;
    const simpson = (i) => {
      const at = (angle) => Math.cos(angle) ** (df - 1);
      return (width / 6) * (at(i * width) + 4 * at((i + 0.5) * width) + at((i + 1) * width));
    };
    let total = 0;
    for (let i = 0; i < steps; i++) total += simpson(i);
    const wanted = (probability - 0.5) * 2 * total;
    let sum = 0;
    for (let i = 0; i < steps; i++) {
      const part = simpson(i);
      if (sum + part >= wanted) return Math.sqrt(df) * Math.tan((i + (wanted - sum) / part) * width);
      sum += part;
    }
    return Infinity;
  };

  const result_of = (files, folders) => {
    const complete = folders.filter(({ launch }) => launch.status === "complete").at(-1);
    if (!complete) return null;
    const raw = files.get(`${complete.folder}result.json`);
    if (raw) return { ...JSON.parse(text(raw)), timings: complete.launch.timings };
    // Events that begin at no grant are nobody's.
    const events = complete.granted && files.get(`${complete.folder}events.jsonl`);
    const trained = events && lines_of(events).map((line) => JSON.parse(line)).find((event) => event.type === "trained");
    return trained ? { ...trained.body.result, timings: complete.launch.timings } : null;
  };

  const recompute = (plan, record, results) => {
    const counted = plan.schedule.filter((slot) => !slot.burn_in);
    const rate = (slot) => results.get(slot.index).units / results.get(slot.index).elapsedSec;
    if (plan.spec.order === "protected-only") return { overhead: null, how: "no raw leg" };
    if (plan.spec.order !== "abba") {
      const arms = ["protected", "raw"].map((arm) => counted.filter((slot) => slot.arm === arm && results.get(slot.index)));
      if (arms.some((slots) => slots.length !== 1)) return { overhead: null, how: "an arm has no result" };
      const [guarded, raw] = arms.map(([slot]) => rate(slot));
      return { overhead: (100 * (raw - guarded)) / raw, how: `(${raw.toFixed(3)} - ${guarded.toFixed(3)}) / ${raw.toFixed(3)}` };
    }
    const troubled = new Set(record.figures.slots.filter((slot) => slot.disturbed.length).map((slot) => slot.leg));
    const blocks = Map.groupBy(counted, (slot) => slot.block);
    const d = [];
    for (const slots of blocks.values()) {
      const whole = slots.every((slot) => results.get(slot.index)?.units > 0);
      if (!whole || slots.some((slot) => troubled.has(`s${String(slot.index).padStart(3, "0")}-${slot.arm}`))) continue;
      const logs = (arm) => slots.filter((slot) => slot.arm === arm).map((slot) => Math.log(rate(slot)));
      d.push(mean(logs("protected")) - mean(logs("raw")));
    }
    if (!d.length) return { overhead: null, how: "no whole block" };
    const found = { overhead: percent(mean(d)), how: `${d.length} blocks` };
    if (d.length < 2) return found;
    const spread = Math.sqrt(d.reduce((sum, value) => sum + (value - mean(d)) ** 2, 0) / (d.length - 1));
    const half = (t_quantile(0.975, d.length - 1) * spread) / Math.sqrt(d.length);
    return { ...found, interval: [percent(mean(d) + half), percent(mean(d) - half)] };
  };
  const STEPS = ["sealSec", "uploadSec", "startSec", "attestSec", "releaseSec", "unsealSec", "zeroizeSec", "fetchSec"];
  const fixed_cost = (launches) => {
    const steps = STEPS.filter((step) => launches.some((timings) => step in timings));
    const values = steps.map((step) => median(launches.filter((timings) => step in timings).map((timings) => timings[step])));
    return values.length ? values.reduce((sum, value) => sum + value, 0) : null;
  };
  const near = (a, b) => (a === null || b === null || a === undefined || b === undefined
    ? (a ?? null) === (b ?? null) : Math.abs(a - b) <= 2e-6 * Math.max(1, Math.abs(b)));

  // --- ledger ------------------------------------------------------------------------------------

  const open_checkpoint = async (note, keys) => {
    const cut = note.lastIndexOf("\n\n");
    const body = note.slice(0, cut + 1);
    const [origin, size, head] = body.split("\n");
    const signers = [];
    const witnesses = [];
    for (const line of note.slice(cut + 2).split("\n").filter(Boolean)) {
      const [, name, blob] = line.split(" ");
      const bytes = base64(blob);
      for (const key of keys) {
        const kind = key.role === "publisher" ? 1 : key.role === "witness" ? 4 : 0;
        const id = (await sha256(joined(utf8(`${name}\n`), Uint8Array.of(kind), key.raw))).slice(0, 4);
        if (!kind || !same(id, bytes.slice(0, 4))) continue;
        let [signature, message] = [bytes.slice(4), body];
        if (kind === 4) {
          const stamp = new DataView(bytes.buffer).getBigUint64(4);
          [signature, message] = [bytes.slice(12), `cosignature/v1\ntime ${stamp}\n${body}`];
        } else if (name !== origin) continue;
        if (!(await signed_by(key.raw, signature, utf8(message)))) throw new Error("the checkpoint's signature does not verify");
        if (kind === 1) signers.push(key);
        else witnesses.push(key.label);
      }
    }
    if (!signers.length) throw new Error("no publisher of the keyring signed the checkpoint");
    // A log is named after its key, and a retired key's log goes no further than the keyring says.
    const last = Math.max(Number(size) - 1, 0);
    const signer = signers.find((key) => (key.validFrom ?? 0) <= last && last <= (key.validUntil ?? Infinity));
    if (!signer) throw new Error("the log goes on past its key's retirement");
    if (origin !== `glasshouse/ledger/${signer.keyid.slice(0, 16)}`) throw new Error(`${origin} is not the log of its signer`);
    return { origin, size: Number(size), head: base64(head), signer, witnesses };
  };

  // RFC 9162, section 2.1.3.2.
  const included = async (leaf, index, size, proof, head) => {
    let [node, last, hash] = [index, size - 1, await sha256(joined(Uint8Array.of(0), utf8(canonical(leaf))))];
    if (index >= size) return false;
    for (const item of proof.map(unhex)) {
      if (last === 0) return false;
      if (node % 2 || node === last) {
        hash = await sha256(joined(Uint8Array.of(1), item, hash));
        while (node % 2 === 0 && node) [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
      } else {
        hash = await sha256(joined(Uint8Array.of(1), hash, item));
      }
      [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
    }
    return last === 0 && same(hash, head);
  };

  // --- what the record admits ---------------------------------------------------------------------

  const NAMES = /^((plan\.dsse|allocation|release|outcome|inclusion|record)\.json|legs\/s\d{3}-(raw|protected)(-l[1-9]\d{0,2})?\/((exchange|reference|launch|result)\.json|(events|heads)\.jsonl))$/;
  const REQUIRED = ["plan.dsse.json", "record.json", "outcome.json"];

  // Whether the record is excluded for this fault of this launch. Of many findings it spells out the first few.
  const admits = (record, launch, fault) => {
    const rule = "event-chain-broken";
    if (!record.exclusion?.codes.includes(rule)) return false;
    const found = record.checks.find(({ code }) => code === rule).detail.split("; ");
    const own = found.find((item) => item.startsWith(`${launch}: `));
    if (!own) return / and \d+ more$/.test(` ${found.at(-1)}`);
    return own.slice(launch.length + 2).split(", ").includes(fault);
  };
  // What the faults of a launch come to: nothing, or words where the record tells of every one; else it fails.
  const judged = (record, launch, faults) => {
    const untold = [...faults].filter(([code]) => !admits(record, launch, code)).map(([, words]) => words);
    if (untold.length) throw new Error(`${[...new Set(untold)].join("; ")}${record.exclusion ? ", and the record does not say so" : ""}`);
    return faults.size ? { words: `${[...new Set(faults.values())].join("; ")}, as the record says: the row is excluded` } : {};
  };

  // --- the story ---------------------------------------------------------------------------------

  const MARKS = { ok: "ok", failed: "failed", skipped: "not checked" };
  let failures = 0;
  const say = (state, code, detail) => {
    const line = document.createElement("li");
    line.className = { ok: "is-ok", failed: "is-bad", skipped: "is-open" }[state];
    line.dataset.state = state;
    const parts = [["span", "gh-checks__mark", MARKS[state]], ["code", "", code], ["span", "", detail]];
    for (const [tag, name, words] of parts) {
      const part = document.createElement(tag);
      part.className = name;
      part.textContent = words;
      line.append(part, " ");
    }
    list.append(line);
    failures += state === "failed";
  };
  // One check: its line says what was found, or what was thrown. Values without words are summed up later.
  const check = async (code, about, body) => {
    try {
      const found = await body();
      const words = typeof found === "string" ? found : found.words;
      if (words) say("ok", code, `${about}${words}`);
      return found;
    } catch (error) {
      say("failed", code, `${about}${error.message}`);
      return null;
    }
  };

  const verify = async () => {
    // 1. Keys, from this site: the weakest link, and said so.
    const keys = await read_keys(box.dataset.keys);
    if (!keys.length) throw new Error("this site publishes no keys");
    const bundle = `research/bundles/${row}/`;
    const envelope_bytes = await fetched(`${bundle}bundle.dsse.json`);

    // 2. The signature over the list of files.
    const opened = await check("bundle-signature", "", async () => {
      const found = await open_envelope(envelope_bytes, keys, "tag:glasshouse,2026:bundle/v1");
      return { ...found, words: `bundle.dsse.json is signed by ${found.signer.label}` };
    });
    if (!opened) return say("skipped", "everything else", "without that signature nothing below means anything");
    const { predicate, subject } = opened.statement;

    // 3. Every file against the list.
    const files = new Map();
    let altered = 0;
    const named = subject.filter(({ name }) => NAMES.test(name));
    for (let at = 0; at < named.length; at += 8) {
      await Promise.all(named.slice(at, at + 8).map(async ({ name, digest: told }) => {
        const bytes = await fetched(bundle + name).catch(() => null);
        if (bytes) files.set(name, bytes);
        if (bytes && (await digest(bytes)) === told.sha256) return;
        altered += 1;
        say("failed", "file-digest", bytes ? `${name} is not the file that was signed` : `${name} is missing`);
      }));
    }
    for (const name of REQUIRED.filter((name) => !named.some((file) => file.name === name))) say("failed", "file-digest", `${name} was not signed`);
    if (named.length !== subject.length) say("failed", "file-digest", "files were signed that belong to no bundle");
    if (!altered && named.length === subject.length) say("ok", "file-digests", `${files.size} files have the hashes that were signed`);

    // 4. Row, plan and record belong together.
    const artifact_bytes = await fetched(`research/artifacts/${row}.json`);
    const artifact = JSON.parse(text(artifact_bytes));
    await check("artifact", "", async () => {
      if ((await digest(artifact_bytes)) !== box.dataset.sha256) throw new Error("the artifact is not the one this page was made from");
      if (artifact.evidence && artifact.evidence.bundleSha256 !== (await digest(envelope_bytes))) throw new Error("the artifact names another bundle");
      if (artifact.run !== predicate.run) throw new Error("the artifact names another run");
      return "it has the hash on this page, and names this run and this bundle";
    });
    const plan = await check("plan-signature", "", async () => {
      const found = await open_envelope(files.get("plan.dsse.json"), keys, "tag:glasshouse,2026:plan/v1");
      const told = found.statement.predicate;
      if (told.run !== predicate.run || predicate.planSha256 !== (await digest(files.get("plan.dsse.json")))) throw new Error("it is another run's plan");
      listed(keys, found.signer.keyid, "operator", told.serial);
      if (found.signer.keyid !== opened.signer.keyid) throw new Error("plan and bundle have two signers");
      return { ...told, words: `signed by ${found.signer.label}, says it is entry ${told.serial} of the ledger` };
    });
    const record = await check("record", "", async () => {
      if (predicate.recordSha256 !== (await digest(files.get("record.json")))) throw new Error("record.json is not the one that was signed");
      return { ...JSON.parse(text(files.get("record.json"))), words: "record.json is the one that was signed" };
    });
    if (!plan || !record) return say("skipped", "everything else", "there is no sound plan or record to compare with");

    // 5. Each launch: exchange, event chain, countersigned heads.
    const sound = { exchange: 0, chains: 0, events: 0, headed: 0, heads: 0 };
    const launches = new Map(plan.schedule.map((slot) => [slot.index, []]));
    for (const folder of [...new Set([...files.keys()].map((name) => /^legs\/[^/]+\//.exec(name)?.[0]))].filter(Boolean).sort()) {
      const [, slot, arm, again] = /^legs\/s(\d{3})-(raw|protected)(?:-l(\d+))?/.exec(folder);
      const place = `${folder.slice(5, -1)}: `;
      const launch = await check("launch", place, async () => {
        if (!files.has(`${folder}launch.json`)) throw new Error("launch.json is missing");
        const found = parse(files.get(`${folder}launch.json`), "launch.json");
        const planned = plan.schedule[Number(slot)];
        if (planned?.arm !== arm || found.slot !== planned.index || found.arm !== arm) throw new Error("it is no slot of the plan");
        if (again && again !== String(found.launch)) throw new Error(`it holds launch ${found.launch}`);
        const own = planned.lifecycle ? /^(launch|exchange|reference)\.json$|\.jsonl$/ : /^(launch|result)\.json$/;
        const stray = [...files.keys()].find((name) => name.startsWith(folder) && !own.test(name.slice(folder.length)));
        if (stray) throw new Error(`${stray} does not belong to this kind of leg`);
        return found;
      });
      if (!launch) continue;
      const found = { folder, launch, granted: false, judged: false };
      launches.get(Number(slot)).push(found);
      const exchange_bytes = files.get(`${folder}exchange.json`);
      const events = files.get(`${folder}events.jsonl`);
      const name = `s${slot}-${arm} launch ${launch.launch}`;
      const exchange = exchange_bytes && parse(exchange_bytes, "exchange.json");
      if (!exchange?.grant && events?.length) {
        await check("event-chain", place, async () => judged(record, name, new Map([["events-without-grant", "there are events, and no grant"]])));
      }
      if (!exchange) continue;
      const about = [predicate.run, `s${slot}`, launch.launch];
      const key = await check("exchange", place, async () => {
        if (!files.has(`${folder}reference.json`)) throw new Error("reference.json is missing");
        const own = await check_exchange(keys, exchange, plan.serial, ...about);
        return own ? { key: own } : { words: "refused by the broker: no key was released" };
      });
      found.granted = exchange.grant !== null && files.has(`${folder}reference.json`);
      found.judged = !key || found.granted;
      if (!key?.key) continue;
      sound.exchange += 1;
      const chain = await check("event-chain", place, async () => {
        const read = await check_events(events ?? new Uint8Array(), key.key, exchange.grant, launch.status === "complete");
        return { ...read, ...judged(record, name, read.faults) };
      });
      if (!chain) continue;
      if (!chain.words) [sound.chains, sound.events] = [sound.chains + 1, sound.events + chain.events.length];
      const heads = await check("heads", place, async () => {
        const read = await check_heads(files.get(`${folder}heads.jsonl`), chain.hashes, opened.signer, ...about);
        return { ...read, ...judged(record, name, read.faults) };
      });
      if (!heads || heads.words) continue;
      sound.headed += 1;
      sound.heads += heads.count;
    }
    for (const [index, found] of launches) {
      found.sort((a, b) => a.launch.launch - b.launch.launch);
      const { arm, lifecycle } = plan.schedule[index];
      const told = record.exclusion?.codes.includes("attestation-not-verified");
      if (lifecycle && !told && !found.at(-1)?.judged) say("failed", "exchange", `s${String(index).padStart(3, "0")}-${arm}: nothing shows that the payload was released to it, and the record does not say so`);
      if (found.some(({ launch }, at) => launch.launch !== at + 1) || found.filter(({ launch }) => launch.status === "complete").length > 1) {
        say("failed", "launches", `slot ${index} does not list each of its launches once`);
      }
    }
    const of = (count) => `${count} protected launch${count === 1 ? "" : "es"}: `;
    if (sound.exchange) say("ok", "exchange", `${of(sound.exchange)}evidence, result and grant are signed and bound to each other`);
    if (sound.chains) say("ok", "event-chain", `${of(sound.chains)}${sound.events} events, each signed by the attested key and linked from the grant on`);
    if (sound.headed) say("ok", "heads", `${of(sound.headed)}${sound.heads} heads countersigned by the operator, each last event among them`);

    // 6. The arithmetic.
    const results = new Map([...launches].map(([index, folders]) => [index, result_of(files, folders)]));
    await check("figures", "", async () => {
      const found = recompute(plan, record, results);
      if (!near(found.overhead, record.figures.overheadPct)) throw new Error(`overhead recomputed ${found.overhead}%, recorded ${record.figures.overheadPct}%`);
      const shown = artifact.exclusion ? null : record.figures.overheadPct;
      if (!near(shown, artifact.overheadPct)) throw new Error(`the artifact says ${artifact.overheadPct}%, the record ${shown}%`);
      if (found.overhead === null) return `no overhead, rightly: ${found.how}`;
      return `overhead ${found.overhead.toFixed(4)}% from the legs' own counts and seconds (${found.how}), as recorded${artifact.exclusion ? "; the row is excluded and shows none" : ""}`;
    });
    const told = record.figures.overhead;
    if (told && told.ciLowPct !== null) {
      await check("interval", "", async () => {
        const [low, high] = recompute(plan, record, results).interval ?? [null, null];
        // The t quantile is integrated here by another method than the record's; it agrees to six digits.
        const close = (a, b) => a !== null && Math.abs(a - b) <= 1e-4 * Math.max(1, Math.abs(b));
        if (!close(low, told.ciLowPct) || !close(high, told.ciHighPct)) throw new Error(`recomputed ${low} to ${high}, recorded ${told.ciLowPct} to ${told.ciHighPct}`);
        return `95% from ${low.toFixed(4)}% to ${high.toFixed(4)}%, Student's t over the blocks; which blocks were disturbed is taken from the record`;
      });
    }
    if (record.figures.fixedCostSec) {
      await check("fixed-cost", "", async () => {
        const timed = plan.schedule.filter((slot) => slot.lifecycle && results.get(slot.index)).map((slot) => results.get(slot.index).timings);
        const total = fixed_cost(timed);
        if (!near(total, record.figures.fixedCostSec.totalSec)) throw new Error(`recomputed ${total} s, recorded ${record.figures.fixedCostSec.totalSec} s`);
        return `${total.toFixed(3)} s a protected launch, the medians of its steps`;
      });
    }

    // 7. The ledger.
    if (!box.dataset.inclusion) {
      say("skipped", "ledger-inclusion", "this row is in no log that this site publishes");
    } else {
      await check("ledger-inclusion", "", async () => {
        const found = JSON.parse(text(await fetched(box.dataset.inclusion)));
        const { origin, size, head, signer, witnesses } = await open_checkpoint(found.checkpoint, keys);
        if (origin !== box.dataset.log) throw new Error(`it is about ${origin}, this page names ${box.dataset.log}`);
        for (const name of ["plan", "row"]) {
          const { leaf, proof } = found[name];
          if (!(await included(leaf, leaf.serial, size, proof, head))) throw new Error(`the ${name} is not under the signed root`);
        }
        const [planned, entered] = [found.plan.leaf, found.row.leaf];
        if (planned.planSha256 !== predicate.planSha256 || planned.serial !== plan.serial) throw new Error("the log holds another plan");
        const facts = [entered.row, entered.run, entered.planSerial, entered.bundleSha256, entered.recordSha256];
        const wanted = [row, predicate.run, plan.serial, await digest(envelope_bytes), predicate.recordSha256];
        if (facts.join() !== wanted.join()) throw new Error("the log holds another row");
        return `plan is entry ${planned.serial} and row entry ${entered.serial} of ${size} in ${origin}, under a root signed by ${signer.label}; ${witnesses.length ? `co-signed by ${witnesses.join(", ")}` : "unwitnessed"}`;
      });
    }

    // 8. What a page cannot do.
    say("skipped", "appraisal", "the evidence against the policy, claim by claim: the command above does it");
    say("skipped", "judgement", "the rules behind status, checks and caveats: the command above applies them again");
    say("skipped", "publisher", "this script and the keys come from the site that they judge; they cannot vouch against it");
  };

  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    list.replaceChildren();
    failures = 0;
    box.dataset.outcome = "running";
    verdict.textContent = "Checking…";
    let outcome = "unavailable";
    try {
      const ready = window.isSecureContext && crypto.subtle;
      const known = ready && await crypto.subtle.generateKey({ name: "Ed25519" }, false, ["sign", "verify"]).then(() => true, () => false);
      if (!ready) {
        verdict.textContent = "Unavailable: this page was not served over https or from this machine by http, so the browser offers no cryptography here. Use the command.";
      } else if (!known) {
        verdict.textContent = "Unavailable: this browser cannot check Ed25519 signatures. Use the command.";
      } else {
        outcome = "failed";
        await verify();
        outcome = failures ? "failed" : "ok";
        verdict.textContent = failures
          ? `Not verified: ${failures} check${failures === 1 ? "" : "s"} failed.`
          : "Everything that this page can check holds. What it cannot check is listed too.";
      }
    } catch (error) {
      say("failed", "stopped", error.message);
      verdict.textContent = "Not verified: the check could not be finished.";
    }
    box.dataset.outcome = outcome;
    button.disabled = false;
  });
})();
