import pytest
import torch
import torch.nn.functional as F

from segdistill.methods import build_method
from segdistill.methods.cwd import channel_kl
from segdistill.methods.i2ckd import class_prototypes, prototype_distances, prototype_triplet

C, A = 5, 4


def make_prototypes():
    student, teacher = torch.randn(C, A, dtype=torch.float64), torch.randn(C, A, dtype=torch.float64)
    present = torch.tensor([True, True, False, True, True])
    return student.requires_grad_(), teacher, present


@pytest.mark.parametrize("anchor", ["student", "teacher"])
def test_agrees_with_enumerated_triplets(anchor):
    student, teacher, present = make_prototypes()
    classes = present.nonzero()[:, 0].tolist()
    triplets = [
        (student[i], teacher[i], teacher[j]) if anchor == "student" else (teacher[i], student[i], student[j])
        for i in classes
        for j in classes
        if i != j
    ]
    expected = F.triplet_margin_loss(*map(torch.stack, zip(*triplets, strict=True)), margin=0.7, eps=0.0)
    loss = prototype_triplet(student, teacher, present, margin=0.7, anchor=anchor)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


def test_hardest_negatives_agree_with_loops():
    student, teacher, present = make_prototypes()
    classes = present.nonzero()[:, 0].tolist()
    expected = 0.0
    for i in classes:
        nearest = min((student[i] - teacher[j]).norm() for j in classes if j != i)
        expected += max(0.0, ((student[i] - teacher[i]).norm() - nearest + 1).item()) / len(classes)
    assert prototype_triplet(student, teacher, present, negatives="hardest").item() == pytest.approx(expected)


def test_random_negatives_have_the_mean_of_all():
    student, teacher, present = make_prototypes()
    drawn = torch.stack([prototype_triplet(student, teacher, present, negatives="random") for _ in range(500)])
    torch.testing.assert_close(drawn.mean(), prototype_triplet(student, teacher, present), rtol=0.05, atol=0)
    assert drawn.std() > 0


@pytest.mark.parametrize("anchor", ["student", "teacher"])
@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_gradcheck(anchor, negatives):
    student, teacher, present = make_prototypes()
    assert torch.autograd.gradcheck(
        lambda s: prototype_triplet(s, teacher, present, anchor=anchor, negatives=negatives), student
    )
    features = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 2, 3))
    assert torch.autograd.gradcheck(lambda f: class_prototypes(f, labels, num_classes=4)[0], features)


@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_order_of_classes_and_absent_classes_do_not_matter(negatives):
    student, teacher, present = make_prototypes()
    loss = prototype_triplet(student, teacher, present, negatives=negatives)
    order = torch.randperm(C)
    torch.testing.assert_close(
        prototype_triplet(student[order], teacher[order], present[order], negatives=negatives), loss
    )
    other, known = student.detach().clone(), teacher.clone()
    other[2], known[2] = 1e3, -7.0
    torch.testing.assert_close(prototype_triplet(other, known, present, negatives=negatives), loss.detach())
    assert torch.autograd.grad(loss, student)[0][2].abs().sum() == 0


@pytest.mark.parametrize("negatives", ["all", "hardest", "random"])
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_classes_give_zero_with_a_graph(negatives, count):
    student, teacher, _ = make_prototypes()
    loss = prototype_triplet(student, teacher, torch.arange(C) < count, negatives=negatives)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("negatives", ["all", "hardest", "random"])
def test_equal_prototypes_have_finite_gradients(negatives):
    student = torch.randn(C, A, requires_grad=True)
    loss = prototype_triplet(student, student.detach().clone(), torch.ones(C, dtype=torch.bool), negatives=negatives)
    constant = prototype_triplet(student * 0, torch.zeros(C, A), torch.ones(C, dtype=torch.bool), negatives=negatives)
    (loss + constant).backward()
    assert student.grad.isfinite().all()
    assert constant.item() == pytest.approx(1.0)  # all distances are 0: the margin is left


def test_near_equality_keeps_its_relative_accuracy():
    teacher = 10 * torch.randn(C, 64)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    present = torch.ones(C, dtype=torch.bool)
    exact = prototype_distances(student.double(), teacher.double(), present)
    torch.testing.assert_close(
        prototype_distances(student, teacher, present).within.double(), exact.within, rtol=1e-3, atol=0
    )


def test_distances_within_and_between_agree_with_loops():
    student, teacher, present = make_prototypes()
    within, between = prototype_distances(student, teacher, present)
    assert not within.requires_grad
    for c in range(C):
        if not present[c]:
            assert within[c].isnan()
            assert between[c].isnan()
            continue
        others = [(student[c] - teacher[j]).norm() for j in range(C) if j != c and present[j]]
        torch.testing.assert_close(within[c], (student[c] - teacher[c]).norm().detach())
        torch.testing.assert_close(between[c], torch.stack(others).mean().detach())
    alone = prototype_distances(student, teacher, torch.arange(C) == 1)
    assert alone.within[1].isfinite()
    assert alone.between.isnan().all()


def make_taps():
    student = {"logits": torch.randn(2, C, 6, 8), "features": torch.randn(2, A, 6, 8, requires_grad=True)}
    return student, {"logits": torch.randn(2, C, 6, 8), "features": torch.randn(2, 7, 6, 8)}


def test_projection_of_prototypes_is_projection_of_maps():
    method = build_method("i2ckd").methods["i2ckd"]
    student, teacher = make_taps()
    method.adapt(student, teacher)
    target = torch.randint(0, C, (2, 24, 32))
    prototypes, known, present = method.prototypes(student, teacher, target)
    expected, _ = class_prototypes(method.projection(student["features"]), target, num_classes=C)
    torch.testing.assert_close(prototypes, expected)
    assert known.shape == (C, 7)
    assert present.all()


def test_method_terms_and_weights():
    method = build_method({"name": "i2ckd", "prototype_weight": 2.0})
    student, teacher = make_taps()
    method.adapt(student, teacher)
    target = torch.randint(0, C, (2, 24, 32))
    terms = method(student, teacher, target, 0.0)
    loss = prototype_triplet(*method.methods["i2ckd"].prototypes(student, teacher, target))
    torch.testing.assert_close(terms["i2ckd_prototypes"], 2 * loss)
    plain = channel_kl(student["logits"], teacher["logits"], temperature=2.0)
    torch.testing.assert_close(terms["i2ckd_logits"], 3 * plain)


def test_method_with_one_class_still_reaches_the_projection():
    method = build_method({"name": "i2ckd", "score_weight": 0.0})
    student, teacher = make_taps()
    method.adapt(student, teacher)
    method(student, teacher, torch.zeros(2, 6, 8, dtype=torch.long), 0.0)["i2ckd_prototypes"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert len(list(method.parameters())) == 1


def test_normalised_prototypes_have_their_own_margin():
    method = build_method({"name": "i2ckd", "normalize": True})
    student, teacher = make_taps()
    method.adapt(student, teacher)
    own, known, present = method.methods["i2ckd"].prototypes(student, teacher, torch.randint(0, C, (2, 6, 8)))
    torch.testing.assert_close(own.norm(dim=1), torch.ones(C))
    torch.testing.assert_close(known.norm(dim=1), torch.ones(C))
    assert method.methods["i2ckd"].margin == 0.2
    assert build_method({"name": "i2ckd", "normalize": True, "margin": 0.5}).methods["i2ckd"].margin == 0.5
    assert build_method("i2ckd").methods["i2ckd"].margin == 1.0
    assert present.all()


def test_zero_weights_read_nothing():
    assert build_method({"name": "i2ckd", "score_weight": 0.0}).student_taps() == {"features"}
    assert build_method({"name": "i2ckd", "prototype_weight": 0.0}).teacher_taps() == {"logits"}
    student, teacher = make_taps()
    method = build_method({"name": "i2ckd", "prototype_weight": 0.0})
    method.adapt(student, teacher)
    assert list(method.parameters()) == []
    assert set(method(student, teacher, torch.zeros(2, 6, 8, dtype=torch.long), 0.0)) == {"i2ckd_logits"}


def test_errors():
    present = torch.ones(C, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected prototypes"):
        prototype_triplet(torch.zeros(C, 3), torch.zeros(C, 1), present)
    with pytest.raises(ValueError, match="expected prototypes"):
        prototype_triplet(torch.zeros(C, 3), torch.zeros(C, 3), present[:1])
    with pytest.raises(ValueError, match="anchor"):
        prototype_triplet(torch.zeros(C, 3), torch.zeros(C, 3), present, anchor="both")
    with pytest.raises(ValueError, match="negatives"):
        prototype_triplet(torch.zeros(C, 3), torch.zeros(C, 3), present, negatives="easy")
