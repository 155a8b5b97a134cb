// What a reader meets in a page that is open in a frame, as plain values. Run by tests/test_report_browser.py.
function opened(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, width = page.documentElement.clientWidth;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const near = (one, other) => Math.min(one.right, other.right) - Math.max(one.left, other.left) > 2
    && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 3;

  // Every line of text that is to be seen.
  const lines = [], walker = page.createTreeWalker(page.body, view.NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, text = node.data.trim(), holder = node.parentElement;
    if (!text || holder.closest("script, style, title, option, [hidden]")) continue;
    const range = page.createRange();
    range.selectNodeContents(node);
    const svg = holder.closest("svg"), scrolled = holder.closest(".scroll, pre");
    for (const place of range.getClientRects()) {
      if (place.width && place.height) lines.push({ text, place, svg, scrolled, holder });
    }
  }
  lines.sort((one, other) => one.place.top - other.place.top);
  const overlaps = [], outside = [];
  lines.forEach((line, index) => {
    const within = line.svg ? line.svg.getBoundingClientRect() : { left: 0, right: width };
    if (!line.scrolled && (line.place.left < within.left - 1 || line.place.right > within.right + 1)) outside.push(line.text);
    for (let next = index + 1; next < lines.length && lines[next].place.top < line.place.bottom; next += 1) {
      const other = lines[next];
      if (other.holder !== line.holder && near(line.place, other.place)) overlaps.push([line.text, other.text]);
    }
  });

  const light = (colour) => {
    const parts = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
  };
  const paper = light(view.getComputedStyle(page.body).backgroundColor);
  const card = light(view.getComputedStyle(page.querySelector(".card")).backgroundColor);
  const faint = [...new Set(lines.filter(({ holder, svg }) => {
    const style = view.getComputedStyle(holder), here = light(svg ? style.fill : style.color), on = svg ? card : paper;
    return Math.max(here, on) / Math.min(here, on) < 4;
  }).map((line) => line.text))];

  // By hand: the arrow keys in the first figure.
  const figure = [...page.querySelectorAll(".card svg")].find((svg) => svg.getBoundingClientRect().width);
  const told = [];
  for (let step = 0; step < figure.querySelectorAll(".mark").length; step += 1) {
    figure.dispatchEvent(new view.KeyboardEvent("keydown", { key: "ArrowRight" }));
    told.push(page.getElementById("says").textContent);
  }
  const box = page.getElementById("says").getBoundingClientRect();
  const inView = box.left >= 0 && box.right <= width;
  return {
    title: page.title, texts: lines.length, overlaps, outside, faint, told, inView,
    overflow: page.documentElement.scrollWidth - width,
    figures: [...page.querySelectorAll(".card svg")].filter((svg) => svg.getBoundingClientRect().width).length,
    dark: paper < 0.5, fetched: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    ...(page.getElementById("answers") ? used(page, view) : {}),
  };
}

// What the report of a run does by hand: the rounds of a prompt, and the search among completions.
function used(page, view) {
  const courses = [];
  const [range] = page.querySelectorAll(".slider input");
  for (let round = 1; round <= Number(range.max); round += 1) {
    range.value = round;
    range.dispatchEvent(new view.Event("input"));
    const shown = [...range.closest(".courses").querySelectorAll(".course:not([hidden]) .healed h5")];
    courses.push(shown.map((heading) => heading.textContent).join());
  }
  const search = page.querySelector("[data-controls]"), found = {};
  for (const [name, value] of [["text", "#7"], ["fate", "dropped: narration"], ["dose", "0.5"]]) {
    const field = search.querySelector(`[data-match=${name}]`);
    field.value = value;
    field.dispatchEvent(new view.Event("input", { bubbles: true }));
    found[name] = [search.querySelector("output").value, page.querySelectorAll(".one:not([hidden])").length];
    field.value = "";
    field.dispatchEvent(new view.Event("input", { bubbles: true }));
  }
  return { verdict: page.querySelector(".verdict").innerText, courses, found };
}
