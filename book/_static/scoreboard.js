// The table of the scoreboard: sorting, search and filters. Their state is the address, so that it can be shared.
(() => {
  "use strict";
  const board = document.querySelector(".lossbook-board");
  const form = board.querySelector("form"), status = form.querySelector("[role=status]");
  const table = board.querySelector("table"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells], keys = heads.map((head) => head.dataset.key);
  const filters = [...form.querySelectorAll("select")];
  const words = new Intl.Collator(document.documentElement.lang || "en", { numeric: true, sensitivity: "base" });

  // "c²" is found by "c2", a minus by a hyphen, "Müller" by "muller".
  const simple = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").replace(/\u2212/g, "-").toLowerCase();
  const rows = [...body.rows];
  // Read when somebody searches.
  const texts = new Map();
  const text = (row) => {
    if (!texts.has(row)) texts.set(row, simple([...row.cells].map((cell) => cell.textContent).join(" ")));
    return texts.get(row);
  };

  // The column's key and direction, or null for the order of the book.
  let order = null;

  // What a column is sorted by: its numbers if it has any; null for what is missing.
  const values = (column) => {
    const cells = rows.map((row) => row.cells[column]);
    const numbers = cells.some((cell) => cell.dataset.value);
    return cells.map((cell) => {
      if (numbers) return cell.dataset.value ? Number(cell.dataset.value) : null;
      return cell.textContent.trim() || null;
    });
  };

  const sort = () => {
    let sorted = rows;
    if (order) {
      const value = values(keys.indexOf(order.key)), sign = order.down ? -1 : 1;
      const compare = (a, b) => (typeof a === "number" ? (a < b ? -1 : a > b ? 1 : 0) : words.compare(a, b));
      sorted = rows
        .map((row, place) => ({ row, place, value: value[place] }))
        // What is missing comes last, upwards and downwards.
        .sort((a, b) => (a.value === null) - (b.value === null)
          || (a.value === null ? 0 : sign * compare(a.value, b.value)) || a.place - b.place)
        .map((each) => each.row);
    }
    body.append(...sorted);
    for (const head of heads) {
      if (order && order.key === head.dataset.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  };

  const show = () => {
    const sought = simple(form.elements.text.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = filters.every((filter) => !filter.value || row.dataset[filter.name] === filter.value)
        && sought.every((word) => text(row).includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    const by = order ? `, by ${heads[keys.indexOf(order.key)].textContent.toLowerCase()}, ${order.down ? "descending" : "ascending"}` : "";
    status.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} entries${by}`;
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
    form.elements.text.value = query.get("text") || "";
    for (const filter of filters) {
      filter.value = query.get(filter.name) || "";
      // What there is no choice for.
      if (filter.selectedIndex < 0) filter.value = "";
    }
    const [, down, key] = /^(-?)(.*)$/.exec(query.get("sort") || "");
    order = keys.includes(key) ? { key, down: Boolean(down) } : null;
  };

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      // Upwards, downwards, the order of the book.
      const key = head.dataset.key, same = order && order.key === key;
      order = same && order.down ? null : { key, down: Boolean(same) };
      sort();
      show();
      share();
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { show(); share(); });
  form.addEventListener("reset", (event) => {
    // The form would go back to its values after this event, not before.
    event.preventDefault();
    for (const field of [form.elements.text, ...filters]) field.value = "";
    order = null;
    sort();
    show();
    share();
  });
  restore();
  if (order) sort();
  show();
})();
