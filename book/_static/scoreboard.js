// The scoreboard's search: entries are loaded when somebody asks for them, and as many are shown as are looked at. What
// is asked for is the address, so that it can be shared.
(() => {
  "use strict";
  const board = document.querySelector("#board");
  const form = board.querySelector("form"), status = form.querySelector("[role=status]"), said = status.textContent;
  const table = board.querySelector("table"), body = table.tBodies[0], more = board.querySelector(".lossbook-more");
  const heads = [...table.tHead.rows[0].cells], keys = heads.map((head) => head.dataset.key);
  const fields = [form.elements.text, form.elements.verdict, form.elements.part];
  const words = new Intl.Collator(document.documentElement.lang || "en", { numeric: true, sensitivity: "base" });
  const badges = board.querySelector("template").content;
  // Rows that are added at once.
  const STEP = 50;

  // "c²" is found by "c2", a minus by a hyphen, "Müller" by "muller".
  const simple = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").replace(/\u2212/g, "-").toLowerCase();

  // By kind, a promise of its entries.
  const loaded = {}, arrived = {};
  window.lossbookEntries = (kind, [papers, rows]) => arrived[kind](rows.map(
    ([paper, id, verdict, statement, result, detail, value, runs, number], place) => {
      const [title, part, page] = papers[paper];
      return {
        kind, id, verdict, statement, result, detail, value: value === null ? null : Number(value), runs, number, title,
        part, place, paper, href: `${page}#${kind}-${encodeURIComponent(id)}`,
        text: simple([title, kind, id, verdict, statement, result, detail, runs].join(" ")),
      };
    }));
  const load = (kind) => loaded[kind] ??= new Promise((resolve) => {
    arrived[kind] = resolve;
    document.head.appendChild(document.createElement("script")).src = board.dataset[kind];
  });

  // What of an entry a column is sorted by; null for what is missing.
  const value = {
    paper: (entry) => entry.title,
    entry: (entry) => `${entry.kind} ${entry.id}`,
    verdict: (entry) => entry.verdict,
    statement: (entry) => entry.statement,
    result: (entry) => entry.value,
    runs: (entry) => entry.number,
  };
  const sorted = (entries) => {
    const of = value[order.key], sign = order.down ? -1 : 1;
    const compare = (a, b) => (typeof a === "number" ? (a < b ? -1 : a > b ? 1 : 0) : words.compare(a, b));
    return entries.map((entry) => [of(entry), entry])
      // What is missing comes last, upwards and downwards.
      .sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)))
      .map(([, entry]) => entry);
  };

  const element = (name, text, of = {}) => Object.assign(document.createElement(name), { textContent: text }, of);
  const row = (entry) => {
    const made = document.createElement("tr"), cell = (...inside) => {
      made.appendChild(document.createElement("td")).append(...inside);
    };
    cell(element("a", entry.title, { href: entry.href.split("#")[0] }));
    const head = made.appendChild(element("th", "", { scope: "row" }));
    head.append(element("a", `${entry.kind} ${entry.id}`, { href: entry.href }));
    cell(badges.querySelector(`.lossbook-${entry.verdict}`)?.cloneNode(true) ?? entry.verdict);
    cell(entry.statement);
    cell(`${entry.result} `, element("small", entry.detail));
    cell(entry.runs);
    return made;
  };

  // The column's key and direction, or null for the order of the book; what was found, and how much of it is shown.
  let order = null, found = [], shown = 0, asked = 0;

  const add = () => {
    const next = found.slice(shown, shown + STEP);
    body.append(...next.map(row));
    shown += next.length;
    more.hidden = shown === found.length;
  };

  const show = async () => {
    const mine = ++asked, part = form.elements.part.value, [option] = form.elements.verdict.selectedOptions;
    const wanted = option.dataset.kinds.split(" "), verdict = option.hasAttribute("value") ? "" : option.value;
    const sought = simple(form.elements.text.value).split(/\s+/).filter(Boolean);
    const every = (await Promise.all(wanted.map(load))).flat();
    // Somebody asked for something else in the meantime.
    if (mine !== asked) return;
    // A paper's claims come before its checks.
    if (wanted.length > 1) every.sort((a, b) => a.paper - b.paper);
    found = every.filter((entry) => (!part || entry.part === part) && (!verdict || entry.verdict === verdict)
      && sought.every((word) => entry.text.includes(word)));
    if (order) found = sorted(found);
    for (const head of heads) {
      if (order?.key === head.dataset.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    body.replaceChildren();
    shown = 0;
    add();
    table.hidden = !found.length;
    const by = order ? `, by ${heads[keys.indexOf(order.key)].textContent.toLowerCase()}, ${order.down ? "descending" : "ascending"}` : "";
    const what = wanted.length > 1 ? "entries" : `${wanted[0]}s`;
    status.textContent = `${found.length.toLocaleString("en")} of ${every.length.toLocaleString("en")} ${what}${by}`;
  };

  let waiting = 0;
  const share = () => {
    clearTimeout(waiting);
    // Browsers refuse many changes of the address in a short time.
    waiting = setTimeout(() => {
      const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      if (order) query.set("sort", (order.down ? "-" : "") + order.key);
      history.replaceState(null, "", (`${query}` ? `?${query}` : location.pathname) + location.hash);
    }, 200);
  };

  const restore = () => {
    const query = new URLSearchParams(location.search);
    for (const field of fields) {
      field.value = query.get(field.name) || "";
      // What there is no choice for.
      if (field.selectedIndex < 0) field.value = "";
    }
    const [, down, key] = /^(-?)(.*)$/.exec(query.get("sort") || "");
    order = keys.includes(key) ? { key, down: Boolean(down) } : null;
    return order || fields.some((field) => field.value);
  };

  for (const head of heads) {
    const button = element("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      // Upwards, downwards, the order of the book.
      const key = head.dataset.key, same = order?.key === key;
      order = same && order.down ? null : { key, down: Boolean(same) };
      show();
      share();
    });
  }
  more.addEventListener("click", () => {
    const next = shown;
    add();
    body.rows[next].querySelector("a").focus();
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); show(); });
  form.addEventListener("input", () => { show(); share(); });
  // Whoever is about to type will want them.
  form.addEventListener("focusin", () => load("claim"));
  form.addEventListener("reset", (event) => {
    // The form would go back to its values after this event, not before.
    event.preventDefault();
    for (const field of fields) field.value = "";
    order = null;
    asked += 1;
    found = [];
    body.replaceChildren();
    table.hidden = more.hidden = true;
    status.textContent = said;
    share();
  });
  if (restore()) show();
})();
