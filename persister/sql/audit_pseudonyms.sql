SELECT substr(subject, length('user:') + 1) AS pseudonym
  FROM acts
 WHERE act = 'erase_user'
