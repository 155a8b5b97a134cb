"use strict";
// What a model, a run or a user says is only ever put into the page as text (textContent, value).
const by = (id) => document.getElementById(id);
const settings = by("settings"), exchanges = by("exchanges"), message = by("message"), error = by("error");
let listening = null;  // aborts the answer that is being written
let before = Promise.resolve();  // what was asked of heal is done in turn

function inTurn(work) {
  before = before.then(work).catch((problem) => complain(problem.message));
}

function made(kind, name, text = "") {
  const element = document.createElement(kind);
  element.className = name;
  element.textContent = text;
  return element;
}

function complain(text) {
  error.textContent = text;
  error.hidden = !text;
}

function busy(now) {
  listening = now;
  by("stop").disabled = !now;
  for (const id of ["send", "again", "reset"]) by(id).disabled = Boolean(now);
  for (const field of settings.elements) field.disabled = Boolean(now);
}

function exchange(user) {
  const whole = made("section", "exchange"), answers = made("div", "answers");
  const asked = made("p", "user", user);
  asked.dir = "auto";
  whole.append(asked, answers);
  exchanges.append(whole);
  return answers;
}

function answer(answers, side, head) {
  const box = made("div", "answer"), said = made("p", ""), note = made("span", "note");
  box.dataset.side = side;
  said.dir = "auto";
  box.append(made("h2", "", head), said, note);
  answers.append(box);
  return box;
}

function fill(box, text, note) {
  box.querySelector("p").textContent = text;
  box.querySelector(".note").textContent = note;
}

function show(state) {
  document.title = `heal chat: ${state.name}`;
  document.querySelector("h1").textContent = state.name;
  by("which").textContent = state.which;
  const round = settings.elements.round, sides = by("sides"), answering = state.settings.sides.split(",");
  round.replaceChildren(...Array.from({ length: state.rounds }, (_, index) => new Option(index + 1)));
  for (const side of sides.querySelector("label") ? [] : state.sides) {
    const label = made("label", ""), box = document.createElement("input");
    box.type = "checkbox";
    box.value = side;
    label.append(box, ` ${side}`);
    sides.append(label);
  }
  for (const box of sides.querySelectorAll("input")) box.checked = answering.includes(box.value);
  for (const field of settings.elements) if (field.name) field.value = state.settings[field.name];
  tell();
}

function redraw(state) {
  show(state);
  exchanges.replaceChildren();
  for (const said of state.exchanges) {
    const answers = exchange(said.user);
    for (const [side, text] of Object.entries(said.answers)) fill(answer(answers, side, side), text, "");
  }
}

function tell() {
  for (const range of settings.querySelectorAll("[type=range]")) {
    range.parentElement.querySelector("output").textContent = Number(range.value).toFixed(2);
  }
}

async function post(name, content, signal) {
  const asked = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal };
  const response = await fetch(name, asked);
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

async function set(name, text) {
  complain("");
  try {
    show(await (await post("set", { name, text })).json());
  } catch (problem) {
    complain(problem.message);
    show(await (await fetch("state")).json());
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

async function say(name, content, user) {
  complain("");
  const stopper = new AbortController();
  busy(stopper);
  if (name === "again") exchanges.lastElementChild?.remove();
  const answers = exchange(user);
  let box = null, over = false;
  try {
    for await (const event of events(await post(name, content, stopper.signal))) {
      const low = innerHeight + scrollY > document.body.scrollHeight - 80;
      if (event.kind === "begins") {
        box = answer(answers, event.side, event.head);
        box.classList.add("speaking");
      } else if (event.kind === "hears") {
        fill(box, event.text, event.thinking ? "thinking ..." : "");
      } else if (event.kind === "ends") {
        fill(box, event.text, event.note && `[${event.note}]`);
        box.classList.remove("speaking");
      } else if (event.kind === "done") {
        over = true;
      } else {
        throw new Error(event.text);
      }
      if (low) scrollTo(0, document.body.scrollHeight);
    }
    if (!over) throw new Error("heal no longer answers: look at the terminal that it was started in");
  } catch (problem) {
    if (stopper.signal.aborted) box?.querySelector(".note").replaceChildren("[stopped]");
    else complain(problem.message);
    if (!answers.childElementCount) {
      answers.parentElement.remove();
      if (!message.value) message.value = user;
    }
  }
  box?.classList.remove("speaking");
  busy(null);
  message.focus({ preventScroll: true });
}

settings.addEventListener("submit", (event) => event.preventDefault());
settings.addEventListener("input", tell);
settings.addEventListener("change", (event) => {
  const chosen = [...by("sides").querySelectorAll(":checked")].map((box) => box.value).join();
  const [name, text] = event.target.name ? [event.target.name, event.target.value] : ["sides", chosen];
  inTurn(() => set(name, text));
});
by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  if (listening || !text.trim()) return;
  message.value = "";
  inTurn(() => say("say", { text }, text.trim()));
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    by("composer").requestSubmit();
  }
});
by("stop").addEventListener("click", () => listening?.abort());
by("again").addEventListener("click", () => inTurn(async () => {
  const last = exchanges.lastElementChild?.querySelector(".user").textContent;
  if (last === undefined) complain("nothing was said yet");
  else await say("again", {}, last);
}));
by("reset").addEventListener("click", () => inTurn(async () => {
  complain("");
  redraw(await (await post("reset", {})).json());
}));
inTurn(async () => redraw(await (await fetch("state")).json()));
