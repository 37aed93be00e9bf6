// The gallery's filters: they hide cards, say how many are left, and keep what was chosen in the address.
(() => {
  "use strict";
  const form = document.querySelector(".lossbook-filters");
  const status = form.querySelector("[role=status]");
  const fields = [...form.elements].filter((field) => field.name);
  // Accents and case do not matter.
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const cards = [...document.querySelectorAll(".lossbook-card")].map((element) => ({
    element,
    text: plain(element.dataset.text),
    part: element.dataset.part,
    verdicts: element.dataset.verdicts.split(" "),
    tags: JSON.parse(element.dataset.tags),
  }));

  const show = () => {
    const { text, part, verdict, tag } = Object.fromEntries(fields.map((field) => [field.name, field.value]));
    const words = plain(text).split(/\s+/);
    let left = 0;
    for (const card of cards) {
      const fits = (!part || card.part === part) && (!verdict || card.verdicts.includes(verdict))
        && (!tag || card.tags.includes(tag)) && words.every((word) => card.text.includes(word));
      card.element.hidden = !fits;
      left += fits;
    }
    const papers = cards.length === 1 ? "paper" : "papers";
    const said = left === cards.length ? `${left} ${papers}` : `${left || "None"} of ${cards.length} ${papers}`;
    if (status.textContent !== said) status.textContent = said;
  };

  const keep = () => {
    const address = new URL(location.href);
    for (const { name, value } of fields) {
      if (value.trim()) address.searchParams.set(name, value.trim());
      else address.searchParams.delete(name);
    }
    history.replaceState(history.state, "", address);
  };

  const restore = () => {
    const chosen = new URLSearchParams(location.search);
    for (const field of fields) {
      field.value = chosen.get(field.name) ?? "";
      // A choice that the page does not offer is none.
      if (field.selectedIndex === -1) field.value = "";
    }
    show();
  };

  form.addEventListener("input", () => { show(); keep(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  // The fields are empty only after this event.
  form.addEventListener("reset", () => setTimeout(() => { show(); keep(); }));
  window.addEventListener("popstate", restore);
  window.addEventListener("pageshow", restore);
  restore();
})();
