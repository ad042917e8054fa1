"""64 prompts of four kinds, 16 each, for measuring how fast text is written."""

QUESTIONS = (
  'What is the capital of France?', 'Why is the sky blue?', 'How do I boil an egg?', 'Who wrote Hamlet?',
  'What should I see in Rome?', 'Is a tomato a fruit?', 'How can I sleep better?', 'What is gravity?',
  'How far away is the moon?', 'Why do cats purr?', 'What is a good name for a dog?', 'How does a bicycle stay up?',
  'What makes bread rise?', 'Why do leaves turn red?', 'How do I learn to swim?', 'What is the largest ocean?',
)  # fmt: skip
TASKS = (
  'adds two numbers', 'reverses a string', 'tells whether a number is prime', 'counts the vowels of a text',
  'sorts a list by bubble sort', 'finds the largest number of a list', 'computes a factorial',
  'gives the first n Fibonacci numbers', 'joins two dictionaries', 'removes duplicates from a list',
  'tells whether a word is a palindrome', 'converts Celsius to Fahrenheit', 'reads a file line by line',
  'flattens a list of lists', 'counts the words of a text', 'finds the greatest common divisor',
)  # fmt: skip
OPENINGS = (
  'The old lighthouse stood', 'It was the last day of summer when', 'Nobody in the village remembered',
  'The history of bread begins', 'In the middle of the night, Clara', 'Rivers shape the land by',
  'The captain folded the letter and', 'Of all the rooms in the house,', 'The first trains were',
  'When the rain stopped,', 'A good teacher is', 'The market opened at dawn, and', 'Honey bees live',
  'She had never seen the sea until', 'Mountains form when', 'The clock in the hall',
)  # fmt: skip
PASSAGES = (
  'The meeting on Tuesday has been moved to the large room on the second floor, and lunch will be served at noon in '
  'the garden. Please bring your own chair, as the old ones were sold last week, and tell Mr. Howard whether you '
  'eat fish. The minutes of the last meeting are on the table near the door.',
  'Anna bought three apples, two lemons and a loaf of bread, and paid with the coins that she had found at home. On '
  'the way back she met her brother, who carried a ladder and two buckets of white paint. They sat down under the '
  'chestnut tree, ate the apples, and talked about the house until it was dark.',
  'To reset the device, hold the button on its back for ten seconds, wait until the light turns green, and then let '
  'it go. If the light stays red, take the battery out, clean the contacts with a dry cloth, and try again. Never '
  'put the device in water, and keep it away from small children and from animals.',
  'Our train leaves from platform nine at a quarter past eight and arrives in Vienna shortly before midnight. There '
  'is no dining car, so we shall take bread, cheese and a bottle of cider with us. The hotel is ten minutes from '
  'the station on foot, and the night porter knows that we come late.',
)
ORDERS = (
  'Repeat this text word for word:', 'Correct the spelling of this text:', 'Rewrite this text in the past tense:',
  'Make this text a little more polite:',
)  # fmt: skip

PROMPTS = {
  'question': [question for question in QUESTIONS],
  'code': [f'Write a Python function that {task}.' for task in TASKS],
  'prose': [f'Continue this story or text: {opening}' for opening in OPENINGS],
  'edit': [f'{order}\n\n{passage}' for order in ORDERS for passage in PASSAGES],
}  # fmt: skip
"""Each is asked by the chat template of a model."""
