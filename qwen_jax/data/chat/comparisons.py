"""Human comparisons of Table 4 in their published forms, as prompts with two responses.

SHP, OpenAI's comparisons of summaries, and PRM800K. Report: 3.2.1, Table 4, which does not say how
a comparison becomes a prompt; the prompts of summaries and steps here are ours.
"""

from typing import Any

from qwen_jax.data.chat.rows import Fields, Skipped

Comparison = tuple[Any, Any, Any]  # prompt, chosen and rejected response


def shp(fields: Fields) -> Comparison:
    """Reads Stanford's SHP: "labels" is 1 if "human_ref_A" is preferred, 0 if "human_ref_B" is."""
    responses = (fields.take("human_ref_A"), fields.take("human_ref_B"))
    label = fields.take("labels")
    if label not in (0, 1):
        raise Skipped("the label is neither 0 nor 1")
    history = fields.take("history")
    if not isinstance(history, str):
        raise Skipped("a turn without text")
    chosen, rejected = responses if label == 1 else responses[::-1]
    return history, chosen, rejected


def summaries(fields: Fields) -> Comparison:
    """Reads OpenAI's comparisons: "info" is a post or an article, "choice" the better summary."""
    info, given, choice = (fields.take(key) for key in ("info", "summaries", "choice"))
    if not isinstance(info, dict) or not isinstance(given, list):
        raise Skipped("a comparison without its text or its summaries")
    if len(given) != 2 or choice not in (0, 1):
        raise Skipped("the choice is not one of two summaries")
    inner = fields.inner("info", info)
    title, subreddit = inner.take("title"), inner.take("subreddit")
    text = inner.take("post") or inner.take("article")
    if not isinstance(text, str):
        raise Skipped("a comparison without its text or its summaries")
    headings = (("SUBREDDIT: r/", subreddit), ("TITLE: ", title), ("POST: ", text))
    prompt = "\n\n".join(f"{heading}{value}" for heading, value in headings if value)
    responses = [
        fields.inner("summaries", summary).take("text").strip()
        if isinstance(summary, dict) and isinstance(summary.get("text"), str)
        else None
        for summary in given
    ]
    return f"{prompt}\n\nTL;DR:", responses[choice], responses[1 - choice]


def prm800k(fields: Fields) -> list[Comparison]:
    """Reads PRM800K: at each step, the best continuation against each one rated -1.

    A response is the steps that the labeler chose so far, and one continuation, each on a line.
    The best continuation is the chosen one (or the labeler's own) if it is rated 1, otherwise the
    first with the highest rating. Flagged continuations are left out.
    """
    question = fields.inner("question", fields.take("question"))
    label = fields.inner("label", fields.take("label"))
    problem, steps = question.take("problem"), label.take("steps")
    if fields.take("is_quality_control_question") or fields.take("is_initial_screening_question"):
        raise Skipped("a question that tests the labeler")
    if not isinstance(problem, str) or not isinstance(steps, list):
        raise Skipped("a problem without its text or its steps")
    found, before = [], []
    for step in steps:
        if not isinstance(step, dict):
            raise Skipped("a step is not an object")
        inner = fields.inner("steps", step)
        rated = _rated(inner)
        chosen = _chosen(inner)
        best = chosen if chosen and chosen[1] == 1 else None
        best = best or max(rated, key=lambda item: item[1], default=("", -1))
        if best[1] > -1:
            found += [
                (problem, "\n".join([*before, best[0]]), "\n".join([*before, text]))
                for text, rating in rated
                if rating == -1 and text != best[0]
            ]
        if chosen is None:  # the labeler stopped here
            break
        before.append(chosen[0])
    if not found:
        raise Skipped("no step with a better and a wrong continuation")
    return found


def _chosen(step: Fields) -> tuple[str, int] | None:
    """Returns the continuation that the labeler chose, or wrote and thereby rated 1."""
    index, own = step.take("chosen_completion"), step.take("human_completion")
    if isinstance(index, int):
        completions = step.take("completions")
        if not 0 <= index < len(completions):
            raise Skipped("a step whose chosen continuation is missing")
        return completions[index]["text"], completions[index].get("rating") or 0
    text = own.get("text") if isinstance(own, dict) else own
    return (text, 1) if isinstance(text, str) else None


def _rated(step: Fields) -> list[tuple[str, int]]:
    """Returns the text and rating of each continuation that is rated and not flagged."""
    completions = step.take("completions")
    if not isinstance(completions, list) or not all(
        isinstance(item, dict)
        and isinstance(item.get("text"), str)
        and item.get("rating") in (-1, 0, 1, None)
        for item in completions
    ):
        raise Skipped("a step without rated continuations")
    return [
        (item["text"], item["rating"])
        for item in completions
        if item.get("rating") is not None and not item.get("flagged")
    ]
