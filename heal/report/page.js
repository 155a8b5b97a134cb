for (const button of document.querySelectorAll("button[data-all]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const parts = [...document.querySelectorAll(`#${button.dataset.all} > details`)];
    const open = parts.some((part) => !part.open);
    for (const part of parts) part.open = open;
  });
}

// One round of a prompt at a time.
for (const slider of document.querySelectorAll(".slider")) {
  const [range, told] = [slider.querySelector("input"), slider.querySelector("output")];
  const courses = slider.parentElement.querySelectorAll(".course");
  const show = () => {
    told.value = `${range.value} of ${range.max}`;
    courses.forEach((course, index) => { course.hidden = index + 1 !== range.valueAsNumber; });
  };
  slider.hidden = false;
  range.addEventListener("input", show);
  show();
}

// Completions that match what is asked for; without a question every round is as it was.
for (const controls of document.querySelectorAll("[data-controls]")) {
  const rounds = [...document.querySelectorAll(`#${controls.dataset.controls} > details`)];
  const opened = rounds.map((round) => round.open);
  const asked = (name) => controls.querySelector(`[data-match=${name}]`).value;
  const matches = (row, words, fate, dose) =>
    (!dose || row.dataset.dose === dose) &&
    (!fate || (fate === "dropped" ? row.dataset.fate !== "kept"
      : row.dataset.fate.split("|").includes(fate.replace("dropped: ", "")))) &&
    words.every((word) => row.textContent.toLowerCase().includes(word));
  const search = () => {
    const words = asked("text").toLowerCase().split(/\s+/).filter(Boolean);
    const [fate, dose] = [asked("fate"), asked("dose")];
    const any = words.length > 0 || Boolean(fate || dose);
    let found = 0;
    rounds.forEach((round, index) => {
      let here = 0;
      for (const row of round.querySelectorAll(".one")) {
        row.hidden = any && !matches(row, words, fate, dose);
        here += !row.hidden;
      }
      round.hidden = here === 0;
      round.open = any ? here > 0 : opened[index];
      found += here;
    });
    controls.querySelector("output").value = any ? `${found} found` : "";
  };
  controls.hidden = false;
  controls.addEventListener("input", search);
}

// What stands under the pointer, a finger, or the arrow keys in a figure.
const says = document.createElement("div");
says.id = "says";
says.hidden = true;
says.setAttribute("role", "status");
document.body.append(says);
const hide = () => {
  says.hidden = true;
  for (const mark of document.querySelectorAll(".mark.at")) mark.classList.remove("at");
};
const tell = (mark) => {
  hide();
  const place = mark.firstElementChild.getBoundingClientRect();
  mark.classList.add("at");
  says.textContent = mark.dataset.says;
  says.hidden = false;
  const left = place.left + place.width / 2 - says.offsetWidth / 2;
  const most = document.documentElement.clientWidth - says.offsetWidth - 4;
  says.style.left = `${window.scrollX + Math.max(4, Math.min(left, most))}px`;
  says.style.top = `${window.scrollY + place.top - says.offsetHeight - 6}px`;
};
for (const figure of document.querySelectorAll(".card svg")) {
  const marks = [...figure.querySelectorAll(".mark")];
  for (const mark of marks) {
    const title = mark.querySelector("title");
    mark.dataset.says = title.textContent;
    title.remove();
  }
  figure.addEventListener("pointerover", (event) => {
    const mark = event.target.closest(".mark");
    if (mark) tell(mark); else hide();
  });
  figure.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !marks.length) return;
    event.preventDefault();
    const at = marks.findIndex((mark) => mark.classList.contains("at"));
    tell(marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length]);
  });
}
