/* Empty: bcc includes it, and carries its own. */
