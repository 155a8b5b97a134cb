"""What is relied on in a model's chats, checked on real renderings once, when the model is loaded.

A check that fails refuses the model; what a user should know of a chat that is in order is a notice.
"""

from collections.abc import Callable, Sequence
from string import ascii_lowercase, digits

from heal.config import ModelConfig
from heal.errors import UserError
from heal.models.chat import Chat, RenderingError
from heal.models.thoughts import THOUGHTS

SYSTEM = "Answer as a lighthouse keeper would."
# Each must be in its prompt once, letter by letter.
TEXTS = (
    "What is a 'so-called' \"marmalade\"?",
    "Is {one} < {{two}} or {% three %} & <b>better</b> than \\n?",
    "First line\n\n  second line\twith a tab",
    "Что это? 这是什么? ما هذا؟ ¿Qué es «esto»? 🦊",
)
# Two texts of a script that only its letters tell apart.
SCRIPTS = {
    "accented Latin": ("é", "ü"),
    "Greek": ("γη", "φω"),
    "Cyrillic": ("кот", "лес"),
    "Arabic": ("قط", "حي"),
    "Devanagari": ("घर", "जल"),
    "Chinese": ("猫", "森"),
}

Check = Callable[[Chat], str | None]


def check_contract(chat: Chat, config: ModelConfig) -> tuple[str, ...]:
    """Holds `chat` against CHECKS, in their order.

    Returns:
        NOTICES that apply: a line each.

    Raises:
        UserError: the first check that fails.
    """
    own_template = f", model.chat_template={config.chat_template}" if config.chat_template else ""
    for check in (*CHECKS, *(THINKING if config.thinking else ())):
        if (wrong := check(chat)) is not None:
            raise UserError(f"model.name={config.name}{own_template}: {wrong}")
    notices = NOTICES if config.thinking else (*NOTICES, _thinks_by_itself)
    return tuple(notice for find in notices if (notice := find(chat)) is not None)


def alike(chat: Chat, system: str, texts: Sequence[str]) -> tuple[str, str] | None:
    """Two different user messages (apart from white space around them) with the same prompt ids; None: all differ."""
    seen: dict[tuple[int, ...], str] = {}
    for text in texts:
        other = seen.setdefault(tuple(chat.ids(system, text)), text)
        if other.strip() != text.strip():
            return other, text
    return None


def _has_a_template(chat: Chat) -> str | None:
    named = chat.tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        return (
            f"the model has chat templates for {', '.join(sorted(named))}, none of them the default; set "
            "model.chat_template=PATH to a Jinja template"
        )
    return None


def _renders_a_prompt(chat: Chat) -> str | None:
    if (error := _failure(chat.render, [("user", TEXTS[0])])) is None:
        return None
    if _failure(chat.render, [("system", SYSTEM), ("user", TEXTS[0])]) is None:
        return f"{error}; it demands a system message, and chats without one are asked too: make that message optional"
    return f"{error}; set model.chat_template=PATH to a Jinja template that does"


def _renders_an_answer(chat: Chat) -> str | None:
    return _failure(chat.before_answer, TEXTS[0]) or _failure(chat.next_turn, TEXTS[0])


def _failure(render: Callable[..., str], *arguments: object) -> str | None:
    try:
        render(*arguments)
    except RenderingError as error:
        return str(error)
    return None


def _keeps_the_user_s_text(chat: Chat) -> str | None:
    for system in ("", SYSTEM):
        for text in TEXTS:
            if wrong := _unless_once(text, chat.text(system, text)):
                return (
                    f"what the user says {wrong} the rendered prompt ({text!r}); the chat template must write "
                    "message['content'] of each message once and unchanged"
                )
    return None


def _keeps_the_system_text(chat: Chat) -> str | None:
    if wrong := _unless_once(SYSTEM, chat.text(SYSTEM, TEXTS[0])):
        return f"the system prompt {wrong} the rendered prompt; the chat template must write it once"
    return None


def _unless_once(text: str, prompt: str) -> str:
    """How often the prompt has `text`, in words; empty where it has it once."""
    count = prompt.count(text)
    return "" if count == 1 else "is not in" if count == 0 else f"is {count} times in"


def _opens_the_answer(chat: Chat) -> str | None:
    before, prompt = chat.before_answer(TEXTS[0]), chat.text("", TEXTS[0])
    if not before:
        return "the chat template loses what the assistant says; it must write message['content'] of each message"
    if not before.rpartition(TEXTS[0])[2].strip():
        return "the chat template opens no turn of the assistant: an answer directly follows what the user says"
    if not prompt.startswith(before.rstrip()):
        return (
            f"the chat template's generation prompt opens another turn ({prompt[-40:]!r}) than the one in which it "
            f"writes an answer ({before[-40:]!r})"
        )
    return None


def _opens_no_thought(chat: Chat) -> str | None:
    opened = chat.text("", TEXTS[0]).rpartition(TEXTS[0])[2]
    if any(opened.rfind(opens) > opened.rfind(closes) for opens, closes in THOUGHTS.items()):
        return f"the chat template begins a thought of the assistant's ({opened[-40:]!r}) instead of an answer"
    return None


def _has_thoughts(chat: Chat) -> str | None:
    if error := _failure(chat.render, [("user", TEXTS[0])], True, True):
        return f"model.thinking=true: {error}"
    if chat.thought is not None:
        return None
    return (
        "model.thinking=true: neither the chat template nor the vocabulary says how the model writes a thought "
        f"({', '.join(THOUGHTS)} ...); leave the key out"
    )


def _keeps_texts_before_a_thought(chat: Chat) -> str | None:
    for text in TEXTS:
        for said in (text, SYSTEM):
            if wrong := _unless_once(said, chat.open_text(SYSTEM, text)):
                return f"model.thinking=true: {said!r} {wrong} the prompt that the chat template renders for thinking"
    return None


def _thinks_by_itself(chat: Chat) -> str | None:
    """Where thoughts are known that the template has no switch for and no prompt has closed."""
    if _failure(chat.render, [("user", "x")], True, True) or chat.has_switch:
        return None
    if (thought := chat.thought) is None or thought.after or thought.closes in chat.text("", TEXTS[0]):
        return None
    return (
        f"the model may think before it answers ('{thought.closes}' is known), which no prompt prevents: a thought is "
        "then part of its answer; model.thinking=true leaves thoughts out of what is trained and measured"
    )


def _begins_once(chat: Chat) -> str | None:
    begin = chat.tokenizer.bos_token_id
    if begin is not None and chat.ids("", TEXTS[0])[:2] == [begin, begin]:
        return (
            f"a prompt begins with '{chat.tokenizer.bos_token}' twice: the tokenizer adds what the chat template "
            "writes already"
        )
    return None


def _tells_letters_apart(chat: Chat) -> str | None:
    if two := alike(chat, "", [f"Is it {letter}?" for letter in ascii_lowercase + digits]):
        return f"the tokenizer gives '{two[0]}' and '{two[1]}' the same tokens: it does not know their letters"
    return None


def _folds_system(chat: Chat) -> str | None:
    if chat.takes_system:
        return None
    return "the chat template renders no system message: system prompts are the first paragraph of the user's message"


def _goes_on(chat: Chat) -> str | None:
    added = chat.text("", TEXTS[0]).removeprefix(chat.render(chat.turns("", TEXTS[0])))
    return f"prompts go on with {added!r} after the chat template's generation prompt, to the answer" if added else None


def _ends_in_text(chat: Chat) -> str | None:
    if chat.end_ids:
        return None
    closing = chat.after_answer() or chat.after_answer("another-question")
    return f"the chat template ends an answer with ordinary text ({closing!r}): only an end-of-sequence token stops one"


def _confuses_scripts(chat: Chat) -> str | None:
    lost = [script for script, words in SCRIPTS.items() if alike(chat, "", words)]
    return f"the tokenizer does not know the letters of {', '.join(lost)}" if lost else None


CHECKS: tuple[Check, ...] = (
    _has_a_template,
    _renders_a_prompt,
    _renders_an_answer,
    _keeps_the_user_s_text,
    _keeps_the_system_text,
    _opens_the_answer,
    _opens_no_thought,
    _begins_once,
    _tells_letters_apart,
)
THINKING: tuple[Check, ...] = (_has_thoughts, _keeps_texts_before_a_thought)  # with `model.thinking`
NOTICES: tuple[Check, ...] = (_folds_system, _goes_on, _ends_in_text, _confuses_scripts)
