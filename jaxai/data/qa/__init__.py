"""Stories and questions from bAbI's files or our own grammar, and their encoding as arrays."""

from jaxai.data.qa.babi import BABI_TASKS as BABI_TASKS
from jaxai.data.qa.babi import Question as Question
from jaxai.data.qa.babi import Questions as Questions
from jaxai.data.qa.babi import held_out as held_out
from jaxai.data.qa.babi import load_babi as load_babi
from jaxai.data.qa.babi import write_babi as write_babi
from jaxai.data.qa.questions import Encoder as Encoder
from jaxai.data.qa.questions import Vocabulary as Vocabulary
from jaxai.data.qa.questions import answers_text as answers_text
from jaxai.data.qa.questions import decode as decode
from jaxai.data.qa.questions import encode as encode
from jaxai.data.qa.questions import question_batches as question_batches
from jaxai.data.qa.questions import reading_lines as reading_lines
from jaxai.data.qa.questions import story_of as story_of
from jaxai.data.qa.questions import task_errors as task_errors
from jaxai.data.qa.sources import load_questions as load_questions
from jaxai.data.qa.sources import with_titles as with_titles
from jaxai.data.qa.stories import MOST_NAMES as MOST_NAMES
from jaxai.data.qa.stories import MOST_PLACES as MOST_PLACES
from jaxai.data.qa.stories import STORY_TASKS as STORY_TASKS
from jaxai.data.qa.stories import load_stories as load_stories
