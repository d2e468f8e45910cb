"""What is trained: the classifier, its loss, its metrics, its schedule, transfer learning."""
