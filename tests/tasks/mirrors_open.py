"""The mirrors' rows of open questions: what is asked, in the columns of the datasets that lmms-eval 0.7 names."""

from datasets import List, Value
from mirrors_questions import QUESTIONS, Asked, picture
from mirrors_table import PICTURE, TEXT, TEXTS, Row, Table, of_each, shown, table, texts


def ten_answers(one: Asked) -> list[str]:
    """Eight people say what is right, two say yes to everything."""
    return [one.right] * 8 + ["yes"] * 2


def vqav2() -> list[Table]:
    columns = {
        **texts("question_type", "multiple_choice_answer"),
        "answers": List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": Value("int64")}),
        "image_id": Value("int64"),
        "answer_type": TEXT,
        "question_id": Value("int64"),
        "question": TEXT,
        "image": PICTURE,
    }

    def row(number: int, one: Asked) -> Row:
        given = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(ten_answers(one), 1)
        ]
        ids = {"image_id": 262148 + number, "question_id": 262148000 + number}
        return {
            **ids,
            "question": one.question,
            "answers": given,
            "multiple_choice_answer": one.right,
            "image": shown(one),
        }

    return table("VQAv2", "validation", columns, of_each("vqav2", row))


def gqa() -> list[Table]:
    marked = List({"objectId": TEXT, "value": TEXT})
    columns = {
        **texts("id", "imageId", "question", "answer", "fullAnswer"),
        "isBalanced": Value("bool"),
        "groups": texts("global", "local"),
        **texts("entailed", "equivalent"),
        "types": texts("structural", "semantic", "detailed"),
        "annotations": {"answer": marked, "question": marked, "fullAnswer": marked},
        "semantic": List({"operation": TEXT, "argument": TEXT, "dependencies": List(Value("int32"))}),
        "semanticStr": TEXT,
    }

    def row(number: int, one: Asked) -> Row:
        return {
            "id": str(20156800 + number),
            "imageId": one.pictures[0],
            "question": one.question,
            "answer": one.right,
            "groups": {"global": None, "local": "01-bench"},
            "types": dict.fromkeys(("structural", "semantic", "detailed"), "query"),
            "annotations": {"answer": [], "question": [{"objectId": "681267", "value": "9"}], "fullAnswer": []},
            "semantic": [{"operation": "select", "argument": "bench", "dependencies": []}],
        }

    scenes = sorted({one.pictures[0] for one in QUESTIONS["gqa"]})
    images = [{"id": name, "image": picture(name)} for name in scenes]
    return [
        *table("GQA", "testdev", columns, of_each("gqa", row), "testdev_balanced_instructions"),
        *table("GQA", "testdev", {"id": TEXT, "image": PICTURE}, images, "testdev_balanced_images"),
    ]


def vizwiz() -> list[Table]:
    columns = {"question_id": TEXT, "image": PICTURE, "question": TEXT, "answers": TEXTS, "category": TEXT}

    def row(number: int, one: Asked) -> Row:
        name = f"VizWiz_val_{number:08}"
        return {"question_id": name, "image": shown(one), "question": one.question, "answers": ten_answers(one)}

    return table("VizWiz-VQA", "val", columns, of_each("vizwiz", row))


def textvqa() -> list[Table]:
    columns = {
        "image_id": TEXT,
        "question_id": Value("int32"),
        "question": TEXT,
        "question_tokens": TEXTS,
        "image": PICTURE,
        **dict.fromkeys(("image_width", "image_height"), Value("int32")),
        **texts("flickr_original_url", "flickr_300k_url"),
        "answers": TEXTS,
        "image_classes": TEXTS,
        "set_name": TEXT,
        "ocr_tokens": TEXTS,
    }

    def row(number: int, one: Asked) -> Row:
        asked = {"question_id": 34602 + number, "question": one.question, "answers": ten_answers(one)}
        return {**asked, "image": shown(one), "ocr_tokens": ["seen", *one.right.split()]}

    return table("textvqa", "validation", columns, of_each("textvqa", row))


def mmvet() -> list[Table]:
    columns = {"question_id": TEXT, "image": PICTURE, **texts("question", "answer", "image_source", "capability")}

    def row(number: int, one: Asked) -> Row:
        asked = {"question_id": f"v1_{number}", "question": one.question, "answer": one.right.replace(" and ", "<AND>")}
        return {**asked, "image": shown(one), "capability": "ocr,math" if number == 0 else "rec"}

    return table("MMVet", "test", columns, of_each("mmvet", row))


def docvqa() -> list[Table]:
    columns = {
        **texts("questionId", "question"),
        "question_types": TEXTS,
        "image": PICTURE,
        "docId": Value("int64"),
        **texts("ucsf_document_id", "ucsf_document_page_no"),
        "answers": TEXTS,
        "data_split": TEXT,
    }
    return table("DocVQA", "validation", columns, of_each("docvqa", _on_a_page), "DocVQA")


def infovqa() -> list[Table]:
    columns = {
        **texts("questionId", "question"),
        "answers": TEXTS,
        "answer_type": TEXTS,
        "image": PICTURE,
        "image_url": TEXT,
        "operation/reasoning": TEXTS,
        **texts("ocr", "data_split"),
    }
    return table("DocVQA", "validation", columns, of_each("infovqa", _on_a_page), "InfographicVQA")


def _on_a_page(number: int, one: Asked) -> Row:
    answers = [one.right, one.right.upper()]
    return {"questionId": str(49153 + number), "question": one.question, "answers": answers, "image": shown(one)}


def chartqa() -> list[Table]:
    columns = {**texts("type", "question", "answer"), "image": PICTURE}

    def row(number: int, one: Asked) -> Row:
        kind = "human_test" if number < 2 else "augmented_test"
        return {"type": kind, "question": one.question, "answer": one.right.capitalize(), "image": shown(one)}

    return table("ChartQA", "test", columns, of_each("chartqa", row))


OCRBENCH_KINDS = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)


def ocrbench() -> list[Table]:
    columns = {**texts("dataset", "question", "question_type"), "answer": TEXTS, "image": PICTURE}

    def row(number: int, one: Asked) -> Row:
        kind = OCRBENCH_KINDS[number]
        source = "HME100k" if "Expression" in kind else "IIIT5K"  # the one whose spaces do not count
        asked = {"question": one.question, "question_type": kind, "answer": [one.right]}
        return {"dataset": source, **asked, "image": shown(one)}

    return table("echo840/OCRBench", "test", columns, of_each("ocrbench", row))


def activitynet() -> list[Table]:
    columns = texts("video_name", "question", "question_id", "answer", "type")

    def row(number: int, one: Asked) -> Row:
        name = one.shown[0]
        return {"video_name": name, "question": one.question, "question_id": f"v_{name}_{number}", "answer": one.right}

    return table("lmms-eval/ActivityNetQA", "test", columns, of_each("activitynet-qa", row))
