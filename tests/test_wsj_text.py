"""The transcript rules of the Wall Street Journal corpora, one by one."""

import pytest

from seqssgd.speech.wsj import normalize_transcript, scoring_filter


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("The female produces a litter.", "THE FEMALE PRODUCES A LITTER."),
        ("said . yes .", "SAID YES"),
        ("~ cut off ~", "CUT OFF"),
        ('A\\. B\\.  \\"DOUBLE\\-QUOTE', 'A. B. "DOUBLE-QUOTE'),
        ("[<door_slam] a [door_slam>] b", "A B"),
        ("[phone_ring/] a b [/phone_ring] c", "A B C"),
        ("a [loud_breath] b [LIP_SMACK]", "A <NOISE> B <NOISE>"),
        ("[loud_breath]", "<NOISE>"),
        ("he \\<and\\> <she's> said", "HE AND SHE'S SAID"),
        ("ten %percent %PERCENTAGE two .point five .POINTS", "TEN PERCENT %PERCENTAGE TWO POINT FIVE .POINTS"),
        ("a --dash b -DASH --DASHES", "A -DASH B -DASH --DASHES"),
        (",comma *stars* `tick' (in\\-parenthesis corp; yes: !", ",COMMA *STARS* `TICK' (IN-PARENTHESIS CORP; YES: !"),
        ("<two words> [two words]", "<TWO WORDS> [TWO WORDS]"),
        (" ~ . [cough>] ", ""),
    ],
)
def test_transcripts_are_normalised_as_in_kaldi(raw, text):
    assert normalize_transcript(raw) == text
    if ".POINT" not in text and "%PERCENT" not in text and "--DASH" not in text:
        assert normalize_transcript(text).replace("<", "").replace(">", "") == text.replace("<", "").replace(">", "")


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("<NOISE> THE <SPOKEN_NOISE> DOG <UNK>", "THE DOG"),
        ("<NOISE>", ""),
        ("A :COLON B: *C* **D**", "A COLON B C D"),
        ("SHARE-HOLDERS COMPAIGN APPROACHES- RESEACHERS", "SHAREHOLDERS CAMPAIGN APPROACHES RESEARCHERS"),
        ("HOLDER -DASH APPROACHES X-RAY'S", "HOLDER -DASH APPROACHES X-RAY'S"),
    ],
)
def test_scoring_leaves_out_and_corrects_what_kaldi_does(text, scored):
    assert scoring_filter(text) == scored
    assert scoring_filter(scored) == scored
