-- Batches of campaigns whose rows were taken out of the ledger: nothing is known of what Redis should have.
SELECT b.id, b.campaign FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign WHERE c.ledger_detached
