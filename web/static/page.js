// The page: ask and follow the answer, open passages, add documents and watch their states.
// Whatever comes from people, documents or models becomes text nodes; markup is never made from strings.

const words = JSON.parse(document.getElementById("words").textContent);
const token = document.querySelector('meta[name="csrf-token"]').content;
const language = document.documentElement.lang;
const $ = (id) => document.getElementById(id);
const say = (name, values = {}) => words[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

class Refused extends Error {
  constructor(status, problem = {}) {
    super(problem.detail || say("unexpected"));
    Object.assign(this, { status, advice: problem.next_action || "" });
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { "X-CSRF-Token": token, ...options.headers } });
  } catch {
    throw new Refused(0, { detail: say("offline") });
  }
  if (response.status === 401) location.assign("/");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, body);
  return body;
}

// ---- Answers -------------------------------------------------------------------------------------------------------

const INLINE = /\*\*([^*\n]+)\*\*|`([^`\n]+)`|\[(\d+(?:\s*,\s*\d+)*)\]/g;

function inline(line, citations) {
  const parts = [];
  let end = 0;
  for (const match of line.matchAll(INLINE)) {
    const [whole, bold, code, numbers] = match;
    parts.push(line.slice(end, match.index));
    if (bold) parts.push(element("strong", {}, ...inline(bold, citations)));
    else if (code) parts.push(element("code", {}, code));
    else {
      // Kept together with its chips, so that no line begins with a full stop.
      const stop = /^[.,;:!?)]*/.exec(line.slice(match.index + whole.length))[0];
      parts.push(element("span", { class: "keep" }, ...chips(whole, numbers, citations), stop));
      end = match.index + whole.length + stop.length;
      continue;
    }
    end = match.index + whole.length;
  }
  parts.push(line.slice(end));
  return parts;
}

function chips(whole, numbers, citations) {
  const wanted = numbers.split(",").map((number) => Number(number));
  // While the draft comes in, citations are not checked yet: their numbers are shown, but cannot be opened.
  if (citations === null) return wanted.map((number) => element("span", { class: "chip draft" }, String(number)));
  const known = wanted.map((number) => citations.find((citation) => citation.number === number));
  if (known.includes(undefined)) return [whole];
  return known.map((citation) => chip(citation));
}

function chip(citation) {
  const label = say("source", { number: citation.number, title: placeOf(citation) });
  const open = (event) => openPassage(citation, event.currentTarget);
  return element("button", { class: "chip", type: "button", "aria-label": label, title: label, onclick: open }, String(citation.number));
}

function placeOf(citation) {
  return citation.page ? `${citation.title}, ${say("page", { page: citation.page })}` : citation.title;
}

// The little Markdown that models write: paragraphs, lists, headings, bold, code.
function rendered(text, citations) {
  const blocks = [];
  let list = null;
  let paragraph = null;
  for (const line of text.split("\n")) {
    const item = /^\s*(?:([-*•])|\d+[.)])\s+(.*)$/.exec(line);
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    if (item) {
      const kind = item[1] ? "ul" : "ol";
      if (list?.localName !== kind) blocks.push((list = element(kind)));
      list.append(element("li", {}, ...inline(item[2], citations)));
      paragraph = null;
      continue;
    }
    list = null;
    if (!line.trim()) paragraph = null;
    else if (heading) {
      blocks.push(element("h3", {}, ...inline(heading[1], citations)));
      paragraph = null;
    } else if (paragraph) paragraph.append(element("br"), ...inline(line, citations));
    else blocks.push((paragraph = element("p", {}, ...inline(line, citations))));
  }
  return blocks;
}

let stream = null;
let current = null; // the run on the screen
let draft = "";
let painting = false;

function paintDraft() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    if (stream) $("answer").replaceChildren(...rendered(draft, null));
  });
}

function clearResult(question) {
  closePassage();
  stream?.close();
  stream = null;
  draft = "";
  $("asked").textContent = question;
  for (const id of ["steps", "answer"]) $(id).replaceChildren();
  for (const id of ["notice", "sources", "stop", "judge", "checked"]) $(id).hidden = true;
  $("notice").className = "notice";
  $("result").hidden = false;
  $("answer").className = "answer";
  $("status").textContent = "";
}

function showStep(name) {
  const label = words[`step.${name}`] || say("step.other");
  const last = $("steps").lastElementChild;
  if (last?.textContent === label) return;
  if (last?.matches("[data-waiting]")) {
    last.remove();
    listConversations(); // no longer waiting
  } else last?.removeAttribute("aria-current");
  $("steps").append(element("li", { "aria-current": "step" }, label));
  $("status").textContent = label;
}

function notice(text, advice = "", kind = "") {
  $("notice").className = `notice ${kind}`;
  $("notice").replaceChildren(text ? element("strong", {}, text) : "", advice ? ` ${advice}` : "");
  $("notice").hidden = false;
}

function showRun(run) {
  current = run;
  stream?.close();
  stream = null;
  const answer = $("answer");
  answer.removeAttribute("aria-busy");
  $("steps").replaceChildren();
  for (const id of ["notice", "stop", "judge"]) $(id).hidden = true;
  $("status").textContent = "";
  answer.classList.remove("draft");
  if (run.state !== "answered") return showFailure(run);
  answer.classList.toggle("none", run.no_evidence);
  answer.replaceChildren(...rendered(run.answer || say("no-evidence"), run.citations));
  if (run.no_evidence) notice("", say("no-evidence-advice"), "plain");
  $("status").textContent = say(run.no_evidence ? "no-evidence" : "answered");
  $("sources").hidden = run.citations.length === 0;
  $("sources").querySelector("ol").replaceChildren(...run.citations.map(sourceRow));
  showChecked(run);
  showJudging();
}

// What verification labelled, took out or dropped: the labels stand in the answer, this says why.
function showChecked(run) {
  const counts = new Map();
  for (const finding of run.findings) counts.set(finding, (counts.get(finding) || 0) + 1);
  const what = [...counts].map(([finding, count]) => `${count} × ${words[`finding.${finding}`] || finding}`).join(", ");
  $("checked").textContent = say(run.no_evidence ? "checked.dropped" : "checked", { what });
  $("checked").hidden = counts.size === 0;
}

// ---- Stopping and judging

async function stop() {
  $("stop").disabled = true;
  try {
    const run = await call(`/runs/${current.id}/cancel`, { method: "POST" });
    if (current.id === run.id) showRun(run);
    listConversations();
  } catch (refused) {
    notice(refused.message, refused.advice, "failed");
  } finally {
    $("stop").disabled = false;
  }
}

function showJudging() {
  $("judge").hidden = false;
  $("judge-comment").hidden = true;
  $("comment").value = "";
  $("judge-title").textContent = say("judge");
  for (const button of $("judge").querySelectorAll("button[value]")) button.setAttribute("aria-pressed", "false");
}

async function judge(rating) {
  const run = current;
  try {
    await call(`/runs/${run.id}/feedback`, {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ rating, comment: $("comment").value }),
    });
    if (current !== run) return;
    for (const button of $("judge").querySelectorAll("button[value]")) {
      button.setAttribute("aria-pressed", String(button.value === rating));
    }
    $("judge-comment").hidden = rating !== "down" || $("comment").value !== "";
    $("judge-title").textContent = say("judged");
  } catch (refused) {
    notice(refused.message, refused.advice, "failed");
  }
}

function showWaiting(cause) {
  const label = words[`waits.${cause}`] || say("queued");
  $("steps").replaceChildren(element("li", { "aria-current": "step", "data-waiting": true }, label));
  $("status").textContent = label;
}

// Where a passage stands in its document; the title, which stands above it, is not told twice.
function pathOf(citation) {
  return citation.heading_path.filter((heading) => heading !== citation.title).join(" › ");
}

function sourceRow(citation) {
  const open = (event) => openPassage(citation, event.currentTarget);
  const path = pathOf(citation);
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", class: "source", onclick: open },
      element("span", { class: "chip", "aria-hidden": "true" }, String(citation.number)),
      element("span", { class: "title" }, placeOf(citation)),
      path ? element("span", { class: "path" }, path) : "",
      element("q", {}, citation.quote.replace(/\s+/g, " ").trim()),
    ),
  );
}

function showFailure(run) {
  $("answer").replaceChildren();
  const why = [run.message, run.next_action].filter(Boolean);
  if (run.state === "cancelled") notice(why[0], why[1], "plain");
  else notice(say("failed"), why.join(" "), "failed");
  const again = () => ask(run.question);
  $("notice").append(" ", element("button", { type: "button", class: "quiet", onclick: again }, say("retry")));
  $("status").textContent = $("notice").textContent;
}

function follow(run, after = 0) {
  stream?.close();
  const source = (stream = new EventSource(`/runs/${run.id}/events?after=${after}`));
  let seen = after;
  const on = (kind, handle) =>
    source.addEventListener(kind, (event) => {
      if (source !== stream) return;
      seen = Number(event.lastEventId) || seen;
      if ($("notice").classList.contains("connection")) $("notice").hidden = true;
      handle(JSON.parse(event.data));
    });
  const finish = (data) => {
    showRun(data);
    listConversations();
  };
  $("answer").setAttribute("aria-busy", "true");
  $("answer").classList.add("draft");
  on("step", (data) => showStep(data.name));
  on("token", (data) => {
    draft += data.text;
    paintDraft();
  });
  on("draft-restarted", () => {
    draft = "";
    paintDraft();
  });
  on("waiting", (data) => showWaiting(data.for));
  on("approval-requested", () => showWaiting("approval"));
  on("answer", finish);
  on("failed", finish);
  on("cancelled", finish);
  $("stop").hidden = false;
  source.addEventListener("error", () => {
    // The browser reconnects by itself while it is CONNECTING (the normal end of a stream); a refused one is ours.
    if (source !== stream || source.readyState !== EventSource.CLOSED) return;
    notice(say("reconnecting"), "", "connection");
    setTimeout(() => source === stream && resume(run, seen), 2000);
  });
}

async function resume(run, seen) {
  const waiting = stream;
  try {
    const now = await call(`/runs/${run.id}`);
    if (stream !== waiting) return;
    if (isOpen(now)) follow(now, seen);
    else showRun(now);
  } catch (refused) {
    if (stream !== waiting) return;
    if (refused.status === 404) notice(refused.message, refused.advice, "failed");
    else setTimeout(() => stream === waiting && resume(run, seen), 4000);
  }
}

const isOpen = (run) => ["queued", "running", "waiting"].includes(run.state);

function present(run) {
  current = run;
  clearResult(run.question);
  showConversation(run);
  if (!isOpen(run)) return showRun(run);
  showStepWaiting();
  follow(run);
}

function showStepWaiting() {
  $("steps").replaceChildren(element("li", { "aria-current": "step", "data-waiting": true }, say("queued")));
}

async function ask(question) {
  const text = question.trim();
  if (!text) return $("question").focus();
  const error = $("ask-error");
  error.hidden = true;
  $("send").disabled = true;
  try {
    const run = await call("/questions", {
      method: "POST",
      // The same key again is the same question: a lost reply and a second click cost nothing.
      headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() },
      // While a conversation is on the screen, the question continues it.
      body: JSON.stringify({ question: text, conversation_id: current?.conversation_id }),
    });
    $("question").value = "";
    grow();
    history.pushState({ run: run.id }, "", `/?run=${run.id}`);
    present(run);
    listConversations();
  } catch (refused) {
    error.textContent = [refused.message, refused.advice].filter(Boolean).join(" ");
    error.hidden = false;
    $("question").focus();
  } finally {
    $("send").disabled = false;
  }
}

function grow() {
  const field = $("question");
  field.rows = Math.min(8, Math.max(1, field.value.split("\n").length));
}

// ---- Conversations -------------------------------------------------------------------------------------------------

// The form asks on while a conversation is shown; its other questions stand below the one that is open.
async function showConversation(run) {
  $("fresh").hidden = run === null;
  $("question").placeholder = say(run ? "ask.on" : "ask.first");
  if ($("turns").dataset.conversation !== run?.conversation_id) showTurns([]);
  if (!run) return;
  $("turns").dataset.conversation = run.conversation_id;
  const { runs } = await call(`/conversations/${run.conversation_id}`).catch(() => ({ runs: null }));
  if (runs && current?.id === run.id) showTurns(runs.filter((turn) => turn.id !== run.id).reverse());
}

function showTurns(runs) {
  $("turns").hidden = runs.length === 0;
  $("turns").querySelector("ol").replaceChildren(...runs.map(turnRow));
}

function turnRow(run) {
  const said = run.state === "answered" ? rendered(run.answer, run.citations) : [words[`run.${run.state}`] || run.state];
  return element(
    "li",
    {},
    element("h3", {}, element("a", { href: `/?run=${run.id}`, onclick: opens(run.id) }, run.question)),
    element("div", { class: run.no_evidence ? "answer none" : "answer" }, ...said),
  );
}

function beginConversation() {
  history.pushState({}, "", "/");
  showFromAddress();
  markRecent();
  $("question").focus();
}

function opens(id) {
  return (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState({ run: id }, "", `/?run=${id}`);
    showFromAddress(true);
  };
}

const ago = new Intl.RelativeTimeFormat(language, { numeric: "auto", style: "short" });

function since(moment) {
  const seconds = (new Date(moment) - Date.now()) / 1000;
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= size) return ago.format(Math.round(seconds / size), unit);
  }
  return ago.format(0, "second");
}

function conversationRow(conversation) {
  const state = conversation.no_evidence ? words["run.no-evidence"] : words[`run.${conversation.state}`];
  const count = conversation.questions > 1 ? say("questions", { count: conversation.questions }) : "";
  return element(
    "li",
    {},
    element(
      "a",
      { href: `/?run=${conversation.run_id}`, onclick: opens(conversation.run_id), "data-id": conversation.id },
      element("span", { class: "title" }, conversation.title),
      element("span", { class: "hint" }, [count, state, since(conversation.asked_at)].filter(Boolean).join(" · ")),
    ),
  );
}

async function listConversations() {
  const { conversations } = await call("/conversations").catch(() => ({ conversations: null }));
  if (!conversations) return;
  $("recent").replaceChildren(...conversations.map(conversationRow));
  $("no-questions").hidden = conversations.length > 0;
  markRecent();
}

function markRecent() {
  for (const link of $("recent").querySelectorAll("a")) {
    if (link.dataset.id === current?.conversation_id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function showFromAddress(focus = false) {
  const id = new URLSearchParams(location.search).get("run");
  if (!id) {
    stream?.close();
    stream = current = null;
    $("result").hidden = true;
    showConversation(null);
    return;
  }
  try {
    present(await call(`/runs/${encodeURIComponent(id)}`));
  } catch (refused) {
    clearResult("");
    notice(refused.message, refused.advice, "failed");
  }
  markRecent();
  if (focus) $("asked").focus();
}

// ---- Passages ------------------------------------------------------------------------------------------------------

let opener = null;

async function openPassage(citation, from) {
  const panel = $("passage");
  opener = from;
  for (const pressed of document.querySelectorAll(".open")) pressed.classList.remove("open");
  from.classList.add("open");
  $("passage-title").textContent = citation.title;
  const place = [citation.page && say("page", { page: citation.page }), pathOf(citation)];
  $("passage-place").textContent = place.filter(Boolean).join(" · ");
  $("passage-note").hidden = true;
  $("passage-text").textContent = say("passage-loading");
  // Beside the answer where there is room; over it, with the rest inert, on a phone.
  const phone = matchMedia("(max-width: 60rem)").matches;
  if (!panel.open) {
    if (phone) panel.showModal();
    else panel.show();
  }
  $("passage-title").focus();
  try {
    const passage = await call(`/chunks/${citation.chunk_id}`);
    if (opener === from) showPassage(passage, citation);
  } catch (refused) {
    if (opener === from) $("passage-text").textContent = refused.status === 404 ? say("passage-gone") : refused.message;
  }
}

function showPassage(passage, citation) {
  // Offsets count characters, JavaScript's strings count UTF-16 units: one emoji would shift the mark.
  const characters = Array.from(passage.text);
  const cut = (from, to) => characters.slice(from, to).join("");
  let [start, end] = [citation.quote_start, citation.quote_end];
  if (cut(start, end) !== citation.quote) {
    const found = passage.text.indexOf(citation.quote);
    start = found < 0 ? 0 : Array.from(passage.text.slice(0, found)).length;
    end = found < 0 ? 0 : start + Array.from(citation.quote).length;
  }
  $("passage-title").textContent = passage.title;
  $("passage-note").hidden = passage.current;
  $("passage-note").textContent = say("passage-old");
  if (end > start) {
    const mark = element("mark", {}, cut(start, end));
    $("passage-text").replaceChildren(cut(0, start), mark, cut(end));
    mark.scrollIntoView({ block: "center" });
  } else $("passage-text").textContent = passage.text;
}

function isBackdrop(event) {
  const box = $("passage").getBoundingClientRect();
  return event.clientY < box.top || event.clientX < box.left;
}

function closePassage() {
  if ($("passage").open) $("passage").close();
}

$("passage").addEventListener("close", () => {
  opener?.classList.remove("open");
  if (opener?.isConnected) opener.focus();
  else $("question").focus();
  opener = null;
});
$("passage-close").addEventListener("click", closePassage);
$("passage").addEventListener("click", (event) => event.target === $("passage") && isBackdrop(event) && closePassage());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("passage").open) {
    event.preventDefault();
    closePassage();
  }
});

// ---- Documents -----------------------------------------------------------------------------------------------------

const shown = new Map(); // document id -> [row, what it shows], so that a refresh touches only what changed

const clock = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", day: "numeric", month: "short" });

function waitsFor(document) {
  const what = words[`waiting.${document.waiting}`];
  if (!what || !document.waiting_until) return what;
  return say("waiting.until", { what, time: clock.format(new Date(document.waiting_until)) });
}

function describe(document) {
  const counts = { done: document.chunks_done, all: document.chunks };
  const partly = document.chunks > 0 && document.chunks_done < document.chunks;
  const waits = waitsFor(document);
  if (waits) return [waits, document.state === "ingested" ? counts : null];
  if (document.state === "ingested") return [say("state.ingested", counts), counts];
  if (document.state === "searchable" && document.reason) return [say("state.searchable-failed"), null];
  if (document.state === "searchable" && partly) return [say("state.searchable-new", counts), counts];
  return [words[`state.${document.state}`] || document.state, null];
}

function documentRow(document) {
  const [label, counts] = describe(document);
  const row = element("li", { "data-state": document.state, "data-id": document.id });
  row.append(element("span", { class: "title", title: document.file }, document.title));
  row.append(element("span", { class: "state" }, label));
  if (counts?.all) row.append(element("progress", { max: counts.all, value: counts.done, "aria-label": label }));
  if (document.reason) {
    row.append(element("p", { class: "why" }, document.message, " ", element("span", {}, document.next_action)));
  }
  if ("curates" in $("documents").dataset) {
    if (["received", "ingested"].includes(document.state)) row.append(cancelButton(document));
    row.append(deleteButton(document));
  }
  return row;
}

function deleteButton(document) {
  const label = say("delete", { title: document.title });
  const ask = () => confirm(say("delete-sure", { title: document.title })) && change(document, "delete");
  return element("button", { class: "quiet delete", type: "button", "aria-label": label, title: label, onclick: ask }, "×");
}

function cancelButton(document) {
  const label = say("cancel-document", { title: document.title });
  const stop = () => change(document, "cancel");
  return element("button", { class: "quiet", type: "button", "aria-label": label, onclick: stop }, say("cancel"));
}

async function change(document, act) {
  const told = $("deleted");
  try {
    await call(`/documents/${document.id}/${act}`, { method: "POST" });
    told.replaceChildren();
    if (act === "delete") {
      const restore = () => change(document, "restore");
      const undo = element("button", { class: "quiet", type: "button", onclick: restore }, say("restore"));
      told.append(say("deleted", { title: document.title }), " ", undo);
    }
  } catch (refused) {
    told.replaceChildren(refused.message);
  }
  told.hidden = !told.hasChildNodes();
  refreshDocuments();
}

function paintDocuments(documents) {
  const list = $("document-list");
  const rows = documents.map((document) => {
    const now = JSON.stringify({ ...document, updated_at: "" });
    const known = shown.get(document.id);
    if (known?.[1] === now) return known[0];
    const row = documentRow(document);
    if (known) known[0].replaceWith(row);
    shown.set(document.id, [row, now]);
    changed = Date.now();
    return row;
  });
  rows.forEach((row, index) => {
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] || null);
  });
  while (list.children.length > rows.length) {
    shown.delete(list.lastElementChild.dataset.id);
    list.lastElementChild.remove();
  }
  const done = documents.filter((document) => document.state === "searchable").length;
  $("counts").textContent = documents.length ? say("count.searchable", { done, all: documents.length }) : "";
  $("no-documents").hidden = documents.length > 0 || $("uploads").children.length > 0;
}

let timer = 0;
let changed = Date.now(); // when the list last changed: what has long stood still is asked about less often

async function refreshDocuments() {
  clearTimeout(timer);
  let pause = 5000;
  try {
    const { documents } = await call("/documents");
    paintDocuments(documents);
    const moving = (document) =>
      ["received", "ingested"].includes(document.state) || document.chunks_done < document.chunks;
    if (documents.some(moving)) pause = Date.now() - changed < 60000 ? 1000 : 5000;
  } catch {
    // The list stays as it is; the next look brings it up to date.
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(refreshDocuments, pause);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refreshDocuments()));

function refuseUpload(row, message, advice) {
  const dismiss = () => row.remove();
  row.dataset.state = "failed";
  row.querySelector("progress")?.remove();
  row.querySelector(".state").textContent = say("state.refused");
  row.append(
    element("p", { class: "why", role: "alert" }, message, " ", element("span", {}, advice)),
    element("button", { type: "button", class: "quiet", onclick: dismiss }, say("dismiss")),
  );
}

// Larger files go where web says, instead of through its memory: to the bucket itself, or to web's own disk.
const LARGE = 512 * 1024;

async function send(file, row) {
  const state = row.querySelector(".state");
  const progress = element("progress", { max: 100, value: 0, "aria-label": file.name });
  row.append(progress);
  const told = (event) => {
    progress.value = event.total ? Math.round((100 * event.loaded) / event.total) : 0;
    state.textContent = say("state.uploading", { percent: progress.value });
  };
  try {
    if (file.size > LARGE && globalThis.crypto?.subtle) await sendLarge(file, told);
    else {
      const form = new FormData();
      form.append("file", file);
      await transmit("POST", "/documents", { "X-CSRF-Token": token, Accept: "application/json" }, form, told);
    }
    row.remove();
  } catch (refusal) {
    refuseUpload(row, refusal instanceof Refused ? refusal.message : say("unexpected"), refusal.advice || "");
  }
}

async function sendLarge(file, told) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const announced = { file_name: file.name, bytes: file.size, sha256, media_type: file.type };
  const headers = { "Content-Type": "application/json" };
  const address = await call("/uploads", { method: "POST", headers, body: JSON.stringify(announced) });
  try {
    await transmit(address.method, address.url, address.headers, file, told);
  } catch (refusal) {
    if (refusal.status !== 412) throw refusal; // 412: the bucket has these very bytes already
  }
  await call(address.submitted, { method: "POST" });
}

function transmit(method, path, headers, body, told) {
  return new Promise((done, refuse) => {
    // fetch() tells nothing about what has been sent so far.
    const request = new XMLHttpRequest();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.addEventListener("progress", told);
    request.addEventListener("load", () => {
      if (request.status === 401) location.assign("/");
      if (request.status >= 200 && request.status < 300) done();
      else refuse(new Refused(request.status, request.response || {}));
    });
    request.addEventListener("error", () => refuse(new Refused(0, { detail: say("offline") })));
    request.send(body);
  });
}

const queue = [];
let sending = 0;

async function sendNext() {
  if (sending >= 2 || queue.length === 0) return;
  sending += 1;
  const [file, row] = queue.shift();
  await send(file, row);
  sending -= 1;
  refreshDocuments();
  sendNext();
}

function upload(files) {
  const limit = Number($("documents").dataset.limit);
  for (const file of files) {
    const row = element("li", { "data-state": "uploading" }, element("span", { class: "title" }, file.name));
    row.append(element("span", { class: "state" }, say("state.uploading", { percent: 0 })));
    $("uploads").append(row);
    if (file.size > limit) {
      refuseUpload(row, say("too-large", { limit: $("documents").dataset.limitWords }), say("too-large-advice"));
    } else if (file.size === 0) refuseUpload(row, say("empty"), say("empty-advice"));
    else queue.push([file, row]);
  }
  $("no-documents").hidden = true;
  sendNext();
  sendNext();
}

$("files").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("drop-veil").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop-veil").hidden = true;
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("drop-veil").hidden = true;
  upload([...event.dataTransfer.files]);
});

// ---- Start ---------------------------------------------------------------------------------------------------------

$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", beginConversation);
$("judge").addEventListener("click", (event) => {
  const chosen = event.target.closest("button[value]");
  if (chosen) judge(chosen.value);
});
$("judge").addEventListener("submit", (event) => {
  event.preventDefault();
  judge("down");
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("send").disabled) ask($("question").value);
});
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
addEventListener("popstate", () => showFromAddress());
addEventListener("pageshow", (event) => event.persisted && location.reload());

refreshDocuments();
await showFromAddress();
listConversations();
if (!current) $("question").focus();
