"""The transcripts of the Wall Street Journal corpora, by the rules of Kaldi's recipe, as all published results are."""

import re

NOISE = "<NOISE>"
_POINTS = {"%PERCENT": "PERCENT", ".POINT": "POINT", "--DASH": "-DASH"}
# [<door_slam] and [door_slam>] overlap the word before or after, [phone_ring/] and [/phone_ring] begin and end
_OVERLAPPING = re.compile(r"\[<\w+\]|\[\w+>\]|.*\[\w+/\]|.*\[/\w+\]")
_ALONE = re.compile(r"\[\w+\]")
_CORRECTIONS = {"-HOLDER": "HOLDER", "COMPAIGN": "CAMPAIGN", "APPROACHES-": "APPROACHES", "RESEACHERS": "RESEARCHERS"}


def normalize_transcript(text: str) -> str:
    r"""What was said, in upper case, from a transcript of a .dot file.

    Noises of their own become ``<NOISE>``, those over a word go; so do pauses (``.``) and the mark of a truncated
    recording (``~``). Words that were read although marked for deletion stay, and verbalised punctuation keeps one
    form.

    >>> normalize_transcript(r"~ The \<and\> five .POINT two %PERCENT [loud_breath] *rise* --DASH he [<cough] said .")
    'THE AND FIVE POINT TWO PERCENT <NOISE> *RISE* -DASH HE SAID'
    """
    words = []
    for word in text.upper().replace("\\", "").split():
        word = _POINTS.get(word, word)
        if word in ("~", ".") or _OVERLAPPING.fullmatch(word):
            continue
        if _ALONE.search(word):
            word = NOISE
        elif deleted := re.fullmatch(r"<([\w']+)>", word):
            word = deleted[1]
        words.append(word)
    return " ".join(words)


def scoring_filter(text: str) -> str:
    """What counts in scoring, of references and hypotheses alike: no noises, marks or four known typing errors.

    >>> scoring_filter("<NOISE> THE SHARE-HOLDER'S COMPAIGN :COLON *ROSE*")
    "THE SHAREHOLDER'S CAMPAIGN COLON ROSE"
    """
    text = re.sub(r"<NOISE>|<SPOKEN_NOISE>|<UNK>|[:*]", "", text)
    for wrong, right in _CORRECTIONS.items():
        text = text.replace(wrong, right)
    return " ".join(text.split())
